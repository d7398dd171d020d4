#include <sluice/expert/lambda.hpp>
#include <sluice/expert/simple.hpp>

#include <sluice/core/numeric.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/conformance.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

}  // namespace

TEMPLATE_TEST_CASE("identity_expert, zero_expert: outputs and gradients", "[expert]", float, double) {
  const matrix<TestType> x = test::random_matrix<TestType>(3, 4, 1), dy = test::random_matrix<TestType>(3, 4, 2);
  matrix<TestType> y(3, 4), dx(3, 4), saved(3, 0);
  const identity_expert<TestType> copy(4);
  copy.forward(x, y, saved);
  copy.backward(x, dy, saved, dx);
  CHECK(y == x);
  CHECK(dx == dy);
  const zero_expert<TestType> zero(4);
  y.setOnes(), dx.setOnes();
  zero.forward(x, y, saved);
  zero.backward(x, dy, saved, dx);
  CHECK(y.isZero(0));
  CHECK(dx.isZero(0));
  CHECK(check_expert(copy).passed());
  CHECK(check_expert(zero).passed());
}

TEST_CASE("make_expert: a lambda with a gradient trains like an expert of the library", "[expert][lambda][gradient]") {
  const matrix<double> w = test::random_matrix<double>(3, 5, 1);
  const auto expert = make_expert<double>(
      5, 3, [w](auto x, auto y) { y = (x * w.transpose()).array().sin().matrix(); },
      [w](auto x, auto dy, auto dx) { dx = (dy.array() * (x * w.transpose()).array().cos()).matrix() * w; });
  STATIC_REQUIRE(DifferentiableExpert<std::remove_const_t<decltype(expert)>>);
  const auto report = check_expert(expert);
  INFO(report.describe());
  CHECK(report.passed());
  CHECK(expert.inputs() == 5);
  CHECK(expert.outputs() == 3);
  CHECK_FALSE(HasParameters<decltype(expert)>);
}

TEST_CASE("make_expert: without backward a layer infers, and has no backward to call", "[expert][lambda]") {
  moe_layer layer{top_k_router<float>{4, 3},
                  expert_bank(3, make_expert<float>(4, 4, [](auto x, auto y) { y = 3 * x; }))};
  STATIC_REQUIRE(!DifferentiableExpert<lambda_expert<float, void (*)(tokens_in<float>, tokens_out<float>)>>);
  STATIC_REQUIRE_FALSE(TrainableLayer<decltype(layer)>);
  STATIC_REQUIRE(TrainableLayer<moe_layer<top_k_router<float>, expert_bank<identity_expert<float>>>>);
  const matrix<float> x = test::random_matrix<float>(6, 4, 1);
  matrix<float> y(6, 4);
  initialize(layer, 1);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  CHECK(test::largest_difference(y, matrix<float>(3 * x)) <= test::bound<float>(2, 12));
}

TEST_CASE("make_expert: function pointers and state that is shared, and widths below one", "[expert][lambda]") {
  const auto twice = make_expert<double>(
      2, 2, +[](tokens_in<double> x, tokens_out<double> y) { y = 2 * x; });
  const matrix<double> x = test::random_matrix<double>(3, 2, 1);
  matrix<double> y(3, 2), saved(3, 0);
  twice.forward(x, y, saved);
  CHECK(y == 2 * x);
  const auto nothing = [](auto, auto) {};
  CHECK_THROWS_WITH(make_expert<float>(0, 3, nothing), "sluice: an expert needs D, D' >= 1, not 0, 3");
}
