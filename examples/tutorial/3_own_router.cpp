// Step 3: the same model with a router of its own: four experts a letter at first, two in the end.
#include <sluice/sluice.hpp>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iostream>

#include "model.hpp"

using namespace sluice;
using namespace tutorial;

// begin rule
/// Weights are sigmoids of the scores. While training is young a token has four experts, so that more of them learn.
struct narrowing_rule {
  index_t wide_until = 0;  // step

  index_t top_k() const { return 2; }
  index_t top_k(const routing_context<float>& context) const {
    return context.training && context.step < wide_until ? 4 : top_k();
  }
  void score(const choice_row<float>& row, float* scores) const {
    for (index_t e = 0; e < row.experts; ++e) scores[e] = 1 / (1 + std::exp(-row.logits[e]));
  }
  index_t choose(const choice_row<float>& row, index_t* ids) const {
    kernel::top_k(row.logits, row.experts, row.k, ids);
    return row.k;
  }
  void weigh(const choice_row<float>& row, std::span<const index_t> ids, float* weights) const {
    for (const index_t e : ids) *weights++ = row.scores[e];
  }
  void backward(const choice_row<float>& row, const weighed_experts<float>& weighed, float* dlogits) const {
    for (std::size_t i = 0; i < weighed.ids.size(); ++i) {
      const float w = row.scores[weighed.ids[i]];
      dlogits[weighed.ids[i]] += weighed.dweights[i] * w * (1 - w);
    }
  }
};
static_assert(explain_choice_rule<narrowing_rule, float>());
// end rule

int main(int argc, char** argv) {
  const index_t steps = argc > 1 ? std::atoi(argv[1]) : 200, D = 64;
  const lesson lesson = whole_poem();
  const auto T = static_cast<index_t>(lesson.next.size());

  // begin block
  const token_choice_router router{linear_gate<float>{D, 8}, narrowing_rule{.wide_until = steps / 2}};
  const moe_layer mixture{router, expert_bank<swiglu<float>>{8, D, 64}, switch_balance{.coefficient = 1e-2}};
  letter_model model{residual_layer{normalized_layer{mixture, rms_norm<float>{D}}}};
  // end block
  initialize(model, /*seed=*/1);
  adamw<float> optimizer{{.learning_rate = 3e-3, .clear_gradients = true}};
  const softmax_cross_entropy<float> objective;
  decltype(model)::tape tape;
  matrix<float> logits(T, letters), dlogits(T, letters);
  double first = 0, last = 0;
  for (index_t step = 0; step < steps; ++step) {
    routing_context<float> context;
    context.training = true;
    context.step = step;
    model.forward(lesson.windows, logits, tape, context);
    last = objective(logits, lesson.next, dlogits).loss;
    if (step == 0) first = last;
    model.backward(dlogits, tape);
    optimizer.step(model);
    const auto& statistics = std::get<1>(tape.layers_memory.layers).layer.layer.statistics;
    if (step % 50 == 0 || step + 1 == steps)
      std::cout << "step " << step << ": loss " << last << ", " << statistics.experts_per_token() << " experts a token\n";
    model.after_step(tape);
  }
  return last < first / 2 ? 0 : 1;
}
