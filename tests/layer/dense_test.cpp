#include <sluice/layer/dense.hpp>

#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/shared_expert.hpp>
#include <sluice/train/initialize.hpp>

#include "layer_promises.hpp"
#include "plain_checks.hpp"

using namespace sluice;

static_assert(TrainableLayer<dense_layer<ffn<float>>>);

namespace {

template <typename Scalar>
auto dense_case() {
  dense_layer layer{ffn<Scalar, gelu>{6, 11, {.outputs = 5, .bias = true}}};
  initialize(layer, 1);
  layer.expert().down_bias().fill([](index_t i) { return static_cast<Scalar>(i) - Scalar(0.5); });
  return layer;
}

}  // namespace

TEMPLATE_TEST_CASE("dense_layer: every token through the expert", "[layer][dense]", float, double) {
  auto layer = dense_case<TestType>();
  CHECK(layer.inputs() == 6);
  CHECK(layer.outputs() == 5);
  const matrix<TestType> x = test::random_matrix<TestType>(40, 6, 1);
  matrix<TestType> y(40, 5), expected(40, 5), saved(40, 0);
  typename decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  layer.expert().forward(x, expected, saved);
  CHECK(test::same_bits(y, expected));
}

TEST_CASE("dense_layer: every promise of a layer", "[layer][dense][conformance]") {
  test::check_layer_promises(dense_case<double>(), 2);
}

TEST_CASE("dense_layer: padding and NaN stay with their token", "[layer][dense][nan]") {
  auto layer = dense_case<float>();
  test::check_spoiled_token(layer);
}

TEST_CASE("dense_layer: no tokens, and what does not fit", "[layer][dense]") {
  auto layer = dense_case<float>();
  test::check_edges(layer);
}

TEST_CASE("dense_layer: parameters bear the expert's names, and another storage keeps them", "[layer][dense]") {
  dense_layer layer{swiglu<float>{8, 16}};
  initialize(layer, 2);
  std::vector<std::string> names;
  for_each_parameter(layer, [&](const std::string& name, auto&) { names.push_back(name); });
  CHECK(names == std::vector<std::string>{"gate", "up", "down"});

  const auto small = layer.stored_as<bfloat16_storage>();
  std::vector<std::string> small_names;
  for_each_parameter(small, [&](const std::string& name, auto&) { small_names.push_back(name); });
  CHECK(small_names == names);
  const matrix<float> x = test::random_matrix<float>(3, 8, 3);
  matrix<float> y(3, 8), rounded(3, 8);
  decltype(layer)::workspace workspace;
  std::remove_cvref_t<decltype(small)>::workspace small_workspace;
  layer.forward(x, y, workspace);
  small.forward(x, rounded, small_workspace);
  const float error = test::largest_difference(y, rounded);
  CHECK(error > 0);
  CHECK(error < 3 * 0x1p-8f * y.cwiseAbs().maxCoeff() * 8);  // three roundings to eight bits in a chain of two maps
}
