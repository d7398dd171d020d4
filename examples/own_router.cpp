// A router of your own: each token goes to its best expert, weighted by the sigmoid of that expert's score.
// Shows all that a trainable router needs, runs the conformance kit on it, and trains a layer with it for a few steps.
#include <sluice/sluice.hpp>

#include <iostream>

using namespace sluice;

// begin router
template <std::floating_point Scalar>
struct best_expert_router {
  using scalar = Scalar;
  using plan = sparse_plan<Scalar>;
  struct tape {
    token_screen<Scalar> screen;  // hides padding and NaN from the gate
    matrix_buffer<Scalar> logits, dlogits;
    typename linear_gate<Scalar>::tape gate;
  };
  linear_gate<Scalar> gate;

  index_t inputs() const { return gate.inputs(); }
  index_t experts() const { return gate.experts(); }
  void route(tokens_in<Scalar> x, const routing_context<Scalar>& context, plan& p, tape& t) const {
    t.logits.resize(x.rows(), experts());
    t.screen.score(x, context, [&](tokens_in<Scalar> seen) { gate.forward(seen, context, t.logits.map(), t.gate); },
                   [&](index_t token) { return any_nan(t.logits.row(token), experts()); });
    p.reset(x.rows(), experts());
    for (index_t token = 0; token < x.rows(); ++token) {
      const Scalar* logits = t.logits.row(token);
      const index_t best = kernel::arg_max(logits, experts());
      if (t.screen.is_routed(token)) p.add(token, best, 1 / (1 + std::exp(-logits[best])));
      if (t.screen.is_invalid(token)) p.mark_invalid(token);  // its output will be NaN, and nobody else's
    }
    p.finish();
  }
  void backward(tokens_in<Scalar> x, const routing_context<Scalar>& context, const plan& p,
                const typename plan::gradient& dplan, tape& t, tokens_out<Scalar> dx) {
    t.dlogits.set_zero(x.rows(), experts());
    for (index_t i = 0; i < p.size(); ++i)
      t.dlogits(p.token(i), p.expert(i)) = dplan.weight[i] * p.weight(i) * (1 - p.weight(i));
    gate.backward(t.screen.of(x), context, t.dlogits.map(), t.gate, dx);
  }
  static void visit_parameters(auto& self, auto&& visit) { visit("gate", self.gate); }
};
// end router

static_assert(explain_differentiable_router<best_expert_router<float>>());  // names what is missing, if anything is

int main() {
  best_expert_router<double> checked{{6, 4}};
  initialize(checked, 3);
  const conformance_report report = check_router(checked);
  std::cout << report.describe() << '\n';

  moe_layer layer{best_expert_router<float>{{6, 4}}, expert_bank<swiglu<float>>{4, 6, 12}};
  initialize(layer, 7);
  adamw<float> optimizer({.learning_rate = 1e-2});
  const matrix<float> x = matrix<float>::Random(64, 6);
  const matrix<float> target = x.array().sin();
  matrix<float> y(64, 6), dx(64, 6);
  decltype(layer)::tape tape;
  float first = 0, last = 0;
  for (int step = 0; step < 100; ++step) {
    layer.forward(x, y, tape);
    const matrix<float> dy = (y - target) / 64;
    layer.backward(dy, dx, tape);
    optimizer.step(layer);
    zero_gradients(layer);
    last = (y - target).squaredNorm() / 64;
    if (step == 0) first = last;
  }
  std::cout << "squared error " << first << " -> " << last << '\n';
  return report.passed() && last < first / 4 ? 0 : 1;
}
