#include <sluice/layer/network_gate.hpp>

#include <sluice/expert/ffn.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/change.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/embedding.hpp>
#include <sluice/layer/linear.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/layer/sequence.hpp>
#include <sluice/layer/token_mixer.hpp>
#include <sluice/loss/stable.hpp>
#include <sluice/router/over_training/stable.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/gradient_check.hpp>
#include <sluice/train/conformance.hpp>

#include "gate/gate_check.hpp"

using namespace sluice;

namespace {

/// Two hidden layers with GELU and biases, then a linear map to E logits.
template <typename Scalar>
auto deep_gate(index_t inputs, index_t experts) {
  sequence network{dense_layer{ffn<Scalar, gelu>{inputs, 6, {.outputs = 5, .bias = true}}},
                   dense_layer{ffn<Scalar, gelu>{5, 4, {.outputs = 4, .bias = true}}},
                   linear_layer<Scalar>{4, experts}};
  return network_gate<decltype(network)>{network};
}

}  // namespace

TEST_CASE("network_gate: gradients through a sequence of layers equal central differences", "[layer][gate][gradient]") {
  auto gate = deep_gate<double>(5, 3);
  initialize(gate, 31);
  const auto report =
      test::check_gate(gate, test::random_matrix<double>(7, 5, 32), 33, test::training_context<double>());
  INFO(report.describe());
  CHECK(report.checked > 120);
  CHECK(report.largest_error < 1e-6);
}

namespace {

/// Half of the mean of the tokens so far and half of the token: the least that a Transformer does.
class backward_look : public token_mixer<backward_look, double> {
  friend token_mixer<backward_look, double>;

public:
  static constexpr bool causal = true;
  explicit backward_look(index_t width) : width_(width) {}
  index_t inputs() const noexcept { return width_; }

private:
  template <typename Memory>
  void mix(tokens_in<double> x, tokens_out<double> y, Memory&, const context_type&) const {
    for (index_t t = 0; t < x.rows(); ++t) y.row(t) = (x.row(t) + x.topRows(t + 1).colwise().mean()) / 2;
  }
  void mix_backward(tokens_in<double> dy, tokens_out<double> dx, tape&) {
    for (index_t t = 0; t < dy.rows(); ++t) {
      dx.row(t) += dy.row(t) / 2;
      dx.topRows(t + 1).rowwise() += dy.row(t) / (2 * static_cast<double>(t + 1));
    }
  }

  index_t width_;
};

auto foresight_by_ids(index_t inputs, index_t experts, index_t ids) {
  return network_gate{sequence{embedding_layer<double>{ids, 5}, residual_layer{backward_look{5}},
                               residual_layer{dense_layer{ffn<double, gelu>{5, 7}}}, linear_layer<double>{5, experts}},
                      inputs};
}

}  // namespace

TEST_CASE("network_gate: a network over token ids distils StableMoE's router", "[layer][gate][gradient]") {
  const std::vector<index_t> ids{3, 1, 4, 1, 5, 2, 6, 5, 3};
  using foresight = decltype(foresight_by_ids(4, 3, 7));
  stable_router<double, foresight> router(linear_gate<double>(4, 3), foresight_by_ids(4, 3, 7), {.first_stage = 10});
  residual_layer block{
      moe_layer{router, expert_bank<change_expert<ffn<double, silu>>>(3, change_expert(ffn<double, silu>(4, 5))),
                stable_balance{}, distillation{}}};
  initialize(block, 5);
  matrix<double> x = test::random_matrix<double>(9, 4, 2);
  const matrix<double> dy = test::random_matrix<double>(9, 4, 3);
  matrix<double> y(9, 4), dx(9, 4);
  for (const index_t step : {0, 10}) {
    CAPTURE(step);
    const routing_context<double> context{.training = true, .token_ids = ids, .step = step};
    decltype(block)::tape tape;
    zero_gradients(block);
    block.forward(x, y, tape, context);
    block.backward(dy, dx, tape);
    const auto report = check_gradients(block, {{"x", test::span_of(x), test::span_of(std::as_const(dx))}}, [&] {
      decltype(block)::tape own;
      block.forward(x, y, own, context);
      return (y.array() * dy.array()).sum() + own.loss();
    });
    INFO(report.describe());
    CHECK(report.largest_error < 1e-6);
    index_t learned = 0;
    for_each_parameter(block.router().distilled(), [&](const std::string&, const auto& p) { learned += p.is_learned(); });
    CHECK((learned > 0) == (step == 0));
    // In the second stage it is the ids alone that choose.
    if (step == 0) continue;
    matrix<double> other = test::random_matrix<double>(9, 4, 4);
    decltype(block)::tape second;
    block.forward(other, y, second, context);
    for (index_t t = 0; t < 9; ++t)
      CHECK(second.layer.router.foreseen[t] == tape.layer.router.foreseen[t]);
  }
  CHECK_THROWS_WITH((network_gate{linear_layer<double>{5, 3}, 4}), Catch::Matchers::Contains("5 columns"));
}

TEST_CASE("network_gate: a deep network as the gate of a router keeps every promise", "[layer][gate]") {
  const auto gate = deep_gate<double>(6, 4);
  top_k_router<double, dynamic, dynamic, std::remove_const_t<decltype(gate)>> router{gate, {.top_k = 2}};
  initialize(router, 3);
  const auto report = check_router(router);
  INFO(report.describe());
  CHECK(report.passed());
  std::string names;
  for_each_parameter(router, [&](const std::string& name, const auto&) { names += name + ' '; });
  CHECK(names.starts_with("gate.0.up "));
}
