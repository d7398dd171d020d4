// Step 2: a loss, a training loop, a file, and a text out of it. The number of steps may be given.
#include <sluice/io/model_file.hpp>
#include <sluice/sluice.hpp>

#include <cstdlib>
#include <iostream>

#include "model.hpp"

using namespace sluice;
using namespace tutorial;

constexpr index_t D = 64;

/// The block of step 1, with a loss that keeps the experts busy alike.
auto make_block() {
  moe_layer mixture{top_k_router<float>{D, 8, {.top_k = 2}}, expert_bank<swiglu<float>>{8, D, 64},
                    switch_balance{.coefficient = 1e-2}};
  return residual_layer{normalized_layer{mixture, rms_norm<float>{D}}};
}

// begin sampling
template <typename Model>
std::string continued(const Model& model, std::string text, int count, float temperature, const random_source& random) {
  typename Model::workspace workspace;
  matrix<float> logits(1, letters);
  for (int i = 0; i < count; ++i) {
    model.forward(last_window(text), logits, workspace);
    logits /= temperature;
    kernel::softmax(logits.data(), logits.data(), letters);
    double left = random.uniform(random_site("letter"), i);
    index_t id = 0;
    while (id + 1 < letters && (left -= logits(0, id)) > 0) ++id;
    text += alphabet[static_cast<std::size_t>(id)];
  }
  return text;
}
// end sampling

int main(int argc, char** argv) {
  const index_t steps = argc > 1 ? std::atoi(argv[1]) : 200;
  const std::string file = argc > 2 ? argv[2] : "letters.safetensors";
  const lesson lesson = whole_poem();
  const auto T = static_cast<index_t>(lesson.next.size());

  // begin training
  letter_model model{make_block()};
  initialize(model, /*seed=*/1);
  adamw<float> optimizer{{.weight_decay = 0.01, .clear_gradients = true}};
  const cosine_schedule rate{{.peak = 5e-3, .warmup = steps / 10, .steps = steps}};
  const softmax_cross_entropy<float> objective;

  decltype(model)::tape tape;
  matrix<float> logits(T, letters), dlogits(T, letters);
  double first = 0, last = 0;
  for (index_t step = 0; step < steps; ++step) {
    routing_context<float> context;
    context.training = true;
    context.step = step;

    model.forward(lesson.windows, logits, tape, context);
    const auto result = objective(logits, lesson.next, dlogits);
    model.backward(dlogits, tape);

    clip_gradient_norm(model, 1.0);
    optimizer.set_learning_rate(rate(step));
    optimizer.step(model);
    model.after_step(tape);

    last = result.loss;
    if (step == 0) first = last;
    if (step % 50 == 0 || step + 1 == steps)
      std::cout << "step " << step << ": loss " << result.loss << ", " << 100 * result.accuracy() << " % right\n";
  }
  // end training

  // begin file
  save(model, file, {{"steps", std::to_string(steps)}});

  letter_model again{make_block()};
  load(again, file);
  // end file
  std::cout << '\n' << continued(again, "who has", 180, 0.5f, random_source(3)) << '\n';
  return last < first / 2 ? 0 : 1;
}
