#include <sluice/layer/output_bias.hpp>

#include <sluice/core/numeric.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/loss/importance.hpp>
#include <sluice/router/top_k.hpp>
#include <sluice/train/gradient_check.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"
#include "thread_counts.hpp"

using namespace sluice;

namespace {

template <typename Scalar>
auto biased_layer() {
  output_bias_layer layer{moe_layer{top_k_router<Scalar>{6, 4, {.top_k = 2, .weights = weighting::pre}},
                                    expert_bank<gated_ffn<Scalar>>{4, 6, 5}, importance_loss{}}};
  initialize(layer, 1);
  layer.bias().fill([](index_t i) { return Scalar(0.5) + static_cast<Scalar>(i); });
  return layer;
}

}  // namespace

TEMPLATE_TEST_CASE("output_bias_layer: the layer's output and the bias, once a token", "[layer][output_bias]", float,
                   double) {
  auto layer = biased_layer<TestType>();
  const matrix<TestType> x = test::random_matrix<TestType>(40, 6, 1);
  matrix<TestType> y(40, 6), inner(40, 6), again(40, 6);
  typename decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  layer.forward_planned(x, again, workspace);
  layer.layer().forward(x, inner, workspace.layer);
  matrix<TestType> expected = inner;
  for (index_t t = 0; t < 40; ++t)
    for (index_t c = 0; c < 6; ++c) expected(t, c) += layer.bias().data()[c];
  CHECK(test::same_bits(y, expected));
  CHECK(test::same_bits(again, y));
}

TEST_CASE("output_bias_layer: gradients equal central differences, with losses and padding",
          "[layer][output_bias][gradient]") {
  auto layer = biased_layer<double>();
  routing_context<double> context;
  context.training = true;
  std::vector<std::uint8_t> mask(9, 1);
  SECTION("without padding") {}
  SECTION("with padding") {
    mask[0] = mask[5] = 0;
    context.token_mask = mask;
  }
  matrix<double> x = test::random_matrix<double>(9, 6, 2);
  const matrix<double> dy = test::random_matrix<double>(9, 6, 3);
  matrix<double> y(9, 6), dx(9, 6);
  decltype(layer)::tape tape, other;
  layer.forward(x, y, tape, context);
  layer.backward(dy, dx, tape);
  const auto report = check_gradients(layer, {{"x", test::span_of(x), test::span_of(std::as_const(dx))}}, [&] {
    layer.forward(x, y, other, context);
    return (y.array() * dy.array()).sum() + other.loss();
  });
  INFO(report.describe());
  CHECK(report.checked > 200);
  CHECK(report.largest_error < 1e-6);
}

TEMPLATE_TEST_CASE(
    "output_bias_layer: padding gets zero and gives nothing, NaN stays with its token, no tokens are fine",
    "[layer][output_bias][nan]", float, double) {
  auto layer = biased_layer<TestType>();
  matrix<TestType> x = test::random_matrix<TestType>(10, 6, 2), y(10, 6), dx(10, 6);
  const matrix<TestType> dy = test::random_matrix<TestType>(10, 6, 3);
  x(4, 1) = quiet_nan<TestType>();
  typename decltype(layer)::tape tape;
  layer.forward(x, y, tape);
  for (index_t t = 0; t < 10; ++t)
    for (index_t c = 0; c < 6; ++c) CHECK(is_nan(y(t, c)) == (t == 4));

  std::vector<std::uint8_t> mask(10, 1);
  mask[4] = 0;
  routing_context<TestType> context;
  context.training = true;
  context.token_mask = mask;
  layer.forward(x, y, tape, context);
  layer.backward(dy, dx, tape);
  CHECK(y.row(4).isZero(0));
  CHECK(dx.row(4).isZero(0));
  for (index_t c = 0; c < 6; ++c) {
    TestType sum = 0;
    for (index_t t = 0; t < 10; ++t)
      if (t != 4) sum += dy(t, c);
    CHECK(layer.bias().gradient()[static_cast<std::size_t>(c)] == sum);  // the same order of additions
  }

  matrix<TestType> none(0, 6);
  zero_gradients(layer);
  layer.forward(none, none, tape);
  layer.backward(none, none, tape);
  layer.after_step(tape);
  CHECK(layer.bias().gradient()[0] == 0);
  matrix<TestType> narrow(10, 5);
  typename decltype(layer)::workspace workspace;
  CHECK_THROWS_AS(layer.forward(x, narrow, workspace), std::invalid_argument);
}

TEST_CASE("output_bias_layer: equal bits for every thread count", "[layer][output_bias][determinism]") {
  auto layer = biased_layer<float>();
  test::check_thread_counts(layer);
}
