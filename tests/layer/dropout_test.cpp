#include <sluice/layer/dropout.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include "io/messages.hpp"
#include "layer/layer_promises.hpp"

#include <cmath>

using namespace sluice;

namespace {

template <typename Scalar>
auto dropout_mixture(double p) {
  return dropout_layer{moe_layer{top_k_router<Scalar>{6, 4, {.top_k = 2}}, expert_bank<swiglu<Scalar>>{4, 6, 5}}, p};
}

}  // namespace

TEST_CASE("dropout: numbers go or grow, others at every step, and gradients go the same way", "[layer][dropout]") {
  dropout_layer layer{dense_layer{identity_expert<double>{6}}, 0.25};
  const matrix<double> x = matrix<double>::Ones(500, 6), dy = test::random_matrix<double>(500, 6, 3);
  matrix<double> y(500, 6), again(500, 6), dx(500, 6);
  decltype(layer)::tape tape;
  routing_context<double> context{.training = true, .random = random_source{7, 1}};
  layer.forward(x, y, tape, context);
  index_t gone = 0;
  for (index_t i = 0; i < y.size(); ++i) {
    CHECK((y.data()[i] == 0 || y.data()[i] == 1 / 0.75));
    gone += y.data()[i] == 0;
  }
  CHECK(std::abs(double(gone) / 3000 - 0.25) < 5 * std::sqrt(0.25 * 0.75 / 3000));
  layer.backward(dy, dx, tape);
  CHECK(test::same_bits(dx, matrix<double>(y.cwiseProduct(dy))));
  layer.forward(x, again, tape, context);
  CHECK(test::same_bits(again, y));
  context.random = random_source{7, 2};
  layer.forward(x, again, tape, context);
  CHECK(!test::same_bits(again, y));
}

TEST_CASE("dropout: without training or probability it is the layer inside", "[layer][dropout]") {
  auto layer = dropout_mixture<float>(0.5);
  initialize(layer, 3);
  const matrix<float> x = test::random_matrix<float>(9, 6, 5);
  matrix<float> y(9, 6), expected(9, 6);
  decltype(layer)::workspace ws;
  decltype(layer)::tape tape;
  std::remove_cvref_t<decltype(layer.layer())>::workspace inner;
  layer.layer().forward(x, expected, inner);
  layer.forward(x, y, ws);
  CHECK(test::same_bits(y, expected));
  layer.forward(x, y, tape, {});
  CHECK(test::same_bits(y, expected));
  matrix<float> dropped(9, 6);
  layer.forward(x, y, ws, {.training = true});
  layer.forward(x, dropped, tape, {.training = true});
  CHECK(test::same_bits(y, dropped));
  CHECK(!test::same_bits(y, expected));
  dropout_layer none{layer.layer(), 0};
  decltype(none)::tape none_tape;
  none.forward(x, y, none_tape);
  CHECK(test::same_bits(y, expected));
  CHECK_THROWS_WITH(dropout_mixture<float>(1), test::contains("not 1"));
  CHECK_THROWS_WITH(dropout_mixture<float>(-0.1), test::contains("0 <= p < 1, not -0.1"));
}

TEST_CASE("dropout: every promise of a layer", "[layer][dropout][conformance]") {
  test::check_layer_promises(dropout_mixture<double>(0.3), 11);
}
