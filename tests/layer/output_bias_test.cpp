#include <sluice/layer/output_bias.hpp>

#include <sluice/core/numeric.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/loss/importance.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "layer_promises.hpp"

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

TEST_CASE("output_bias_layer: every promise of a layer", "[layer][output_bias][conformance]") {
  test::check_layer_promises(biased_layer<double>(), 2);
}

TEST_CASE("output_bias_layer: the bias has the gradients of all tokens but padding", "[layer][output_bias]") {
  auto layer = biased_layer<float>();
  const matrix<float> x = test::random_matrix<float>(10, 6, 2), dy = test::random_matrix<float>(10, 6, 3);
  matrix<float> y(10, 6), dx(10, 6);
  std::vector<std::uint8_t> mask(10, 1);
  mask[4] = 0;
  routing_context<float> context;
  context.training = true;
  context.token_mask = mask;
  decltype(layer)::tape tape;
  layer.forward(x, y, tape, context);
  layer.backward(dy, dx, tape);
  for (index_t c = 0; c < 6; ++c) {
    float sum = 0;
    for (index_t t = 0; t < 10; ++t)
      if (t != 4) sum += dy(t, c);
    CHECK(layer.bias().gradient()[static_cast<std::size_t>(c)] == sum);  // the same order of additions
  }
  matrix<float> narrow(10, 5);
  decltype(layer)::workspace workspace;
  CHECK_THROWS_AS(layer.forward(x, narrow, workspace), std::invalid_argument);
}

