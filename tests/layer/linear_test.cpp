#include <sluice/layer/linear.hpp>

#include <sluice/layer/shared_expert.hpp>
#include <sluice/train/initialize.hpp>

#include "layer_promises.hpp"
#include "plain_checks.hpp"

using namespace sluice;

static_assert(TrainableLayer<linear_layer<float>>);

namespace {

template <typename Scalar>
linear_layer<Scalar> linear_case(bool bias = true) {
  linear_layer<Scalar> layer{6, 5, {.bias = bias}};
  initialize(layer, 1);
  if (bias) layer.bias().fill([](index_t i) { return static_cast<Scalar>(i) - Scalar(0.5); });
  return layer;
}

}  // namespace

TEMPLATE_TEST_CASE("linear_layer: y = x W^T + b", "[layer][linear]", float, double) {
  const bool bias = GENERATE(true, false);
  auto layer = linear_case<TestType>(bias);
  const matrix<TestType> x = test::random_matrix<TestType>(37, 6, 1);
  matrix<TestType> y(37, 5);
  typename linear_layer<TestType>::workspace workspace;
  layer.forward(x, y, workspace);
  matrix<TestType> expected = x * layer.weight().to_matrix().transpose();
  if (bias) expected.rowwise() += layer.bias().map().col(0).transpose();
  CHECK(test::largest_difference(y, expected) < test::bound<TestType>(6, 8));
  CHECK(parameter_count(layer) == 30 + (bias ? 5 : 0));
  const auto trained = test::train_once(layer, x, y);
  CHECK(test::same_bits(trained.y, y));
}

TEST_CASE("linear_layer: every promise of a layer", "[layer][linear][conformance]") {
  test::check_layer_promises(linear_case<double>(), 2);
}

TEST_CASE("linear_layer: padding and NaN stay with their token", "[layer][linear][nan]") {
  auto layer = linear_case<float>();
  test::check_spoiled_token(layer);
}

TEST_CASE("linear_layer: no tokens, and what does not fit", "[layer][linear]") {
  auto layer = linear_case<float>();
  test::check_edges(layer);
  CHECK_THROWS_AS(linear_layer<float>(0, 3), std::invalid_argument);
  CHECK_THROWS_AS(linear_layer<float>(3, 0), std::invalid_argument);
}

TEST_CASE("linear_layer: shared memory and a tape without its forward call are refused", "[layer][linear][alias]") {
  linear_layer<float> layer(3, 3);
  initialize(layer, 1);
  matrix<float> x = test::random_matrix<float>(4, 3, 2), y(4, 3), dx(4, 3);
  linear_layer<float>::workspace workspace;
  linear_layer<float>::tape tape;
  CHECK_THROWS_WITH(layer.forward(x, x, workspace), Catch::Matchers::Contains("cannot write over it"));
  CHECK_THROWS_AS(layer.forward(x.topRows(3), x.bottomRows(3), workspace), std::invalid_argument);
  const auto no_forward = Catch::Matchers::Contains("backward needs a training forward call");
  CHECK_THROWS_WITH(layer.backward(y.topRows(0), dx.topRows(0), tape), no_forward);
  layer.forward(x, y, tape);
  CHECK_THROWS_WITH(layer.backward(y, y, tape), Catch::Matchers::Contains("dx shares memory with dy"));
  layer.backward(y, dx, tape);
  const matrix<float> first = dx;
  layer.backward(y, dx, tape);
  CHECK(test::same_bits(first, dx));
}

