#include <sluice/layer/residual.hpp>

#include <sluice/expert/ffn.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/linear.hpp>
#include <sluice/train/initialize.hpp>

#include "layer_promises.hpp"
#include "plain_checks.hpp"

using namespace sluice;

namespace {

template <typename Scalar>
auto residual_case() {
  residual_layer layer{dense_layer{ffn<Scalar, silu>{6, 11}}};
  initialize(layer, 1);
  return layer;
}

}  // namespace

static_assert(TrainableLayer<decltype(residual_case<float>())>);

TEST_CASE("residual_layer: the input and the layer's output, also in place", "[layer][residual]") {
  auto layer = residual_case<float>();
  const matrix<float> x = test::random_matrix<float>(40, 6, 1);
  matrix<float> y(40, 6), inner(40, 6), in_place = x;
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  layer.layer().forward(x, inner, workspace.layer);
  CHECK(test::same_bits(y, matrix<float>(x + inner)));
  layer.forward(in_place, in_place, workspace);
  CHECK(test::same_bits(in_place, y));
  const auto trained = test::train_once(layer, x, inner);
  CHECK(test::same_bits(trained.y, y));
}

TEST_CASE("residual_layer: every promise of a layer", "[layer][residual][conformance]") {
  test::check_layer_promises(residual_case<double>(), 2);
}

TEST_CASE("residual_layer: padding and NaN stay with their token", "[layer][residual][nan]") {
  auto layer = residual_case<float>();
  test::check_spoiled_token(layer);
}

TEST_CASE("residual_layer: no tokens, and what does not fit", "[layer][residual]") {
  auto layer = residual_case<float>();
  test::check_edges(layer);
  CHECK_THROWS_WITH(residual_layer(linear_layer<float>(3, 4)), "sluice: a residual layer needs equal widths, not 3 -> 4");
}

