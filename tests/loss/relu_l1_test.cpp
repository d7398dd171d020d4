#include <sluice/loss/relu_l1.hpp>

#include <sluice/core/sparse_plan.hpp>
#include <sluice/loss/adaptive_l1.hpp>
#include <sluice/router/threshold/relu.hpp>
#include <sluice/train/initialize.hpp>

#include "any_loss.hpp"

using namespace sluice;

namespace {

struct l1_value {
  double value;
  matrix<double> gradient;
};

template <typename Loss>
l1_value evaluate(const Loss& loss, const matrix<double>& logits, const routing_context<double>& context = {}) {
  score_signals<double> seen;
  seen.clean.resize(logits.rows(), logits.cols());
  seen.clean.map() = logits;
  score_gradients<double> gradients;
  gradients.zero_like(seen);
  const sparse_plan<double> plan;
  const double value = loss(seen, plan, context, gradients);
  return {value, gradients.clean.map()};
}

matrix<double> three_rows() {
  matrix<double> logits(3, 4);
  logits << 2, -1, .5, -.3, .2, .1, -.4, -1, -.5, -.1, -.2, -.3;
  return logits;
}

}  // namespace

TEST_CASE("relu_l1: the worked example", "[loss][relu_l1]") {
  // n = (2,1,1,0), a = (2.2,.1,.5,0), k = 1, T = 3, E = 4: 4/9 (4.4 + .1 + .5) = 2.22222; plain 2.8 / 3
  const l1_value balanced = evaluate(relu_l1<fixed_l1>{1, {1e-3}}, three_rows());
  CHECK(std::abs(balanced.value - 2.222222e-3) < 5e-10);
  matrix<double> wanted = matrix<double>::Zero(3, 4);
  wanted(0, 0) = wanted(1, 0) = 8.88889e-4;
  wanted(0, 2) = wanted(1, 1) = 4.44444e-4;
  CHECK(test::largest_difference(balanced.gradient, wanted) < 5e-9);
  CHECK((balanced.gradient.array() != 0).count() == 4);

  const l1_value plain = evaluate(relu_l1<fixed_l1>{1, {1e-3}, {.balanced = false}}, three_rows());
  CHECK(std::abs(plain.value - 9.33333e-4) < 5e-9);
  CHECK(std::abs(plain.gradient(1, 1) - 1e-3 / 3) < 1e-15);
}

TEST_CASE("relu_l1: with an even load the balanced form is the plain one", "[loss][relu_l1]") {
  matrix<double> logits(4, 4);  // every expert active for two of four tokens: k = 2
  logits << .1, .2, -1, -1, -1, .3, .4, -1, -1, -1, .5, .6, .7, -1, -1, .8;
  const l1_value balanced = evaluate(relu_l1<fixed_l1>{2, {0.5}}, logits);
  const l1_value plain = evaluate(relu_l1<fixed_l1>{2, {0.5}, {.balanced = false}}, logits);
  CHECK(std::abs(balanced.value - plain.value) < 1e-15);
  CHECK(test::largest_difference(balanced.gradient, plain.gradient) < 1e-15);
}

TEST_CASE("relu_l1: a crowded expert is pushed harder", "[loss][relu_l1]") {
  matrix<double> logits(4, 2);
  logits << 1, 1, 1, -1, 1, -1, 1, -1;
  const l1_value balanced = evaluate(relu_l1<fixed_l1>{1, {1.0}}, logits);
  CHECK(balanced.gradient(0, 0) == 4 * balanced.gradient(0, 1));
}

TEST_CASE("relu_l1: the mean over layers divides", "[loss][relu_l1]") {
  const l1_value one = evaluate(relu_l1<fixed_l1>{1, {1.0}}, three_rows());
  const l1_value four = evaluate(relu_l1<fixed_l1>{1, {1.0}, {.layers = 4}}, three_rows());
  CHECK(std::abs(four.value - one.value / 4) < 1e-15);
  CHECK(test::largest_difference(four.gradient, one.gradient / 4) < 1e-15);
}

TEST_CASE("relu_l1: padding is in no sum and no mean", "[loss][relu_l1]") {
  matrix<double> logits(5, 4);
  logits.row(0).setConstant(100);
  logits.row(1) = three_rows().row(0);
  logits.row(2).setConstant(quiet_nan<double>());
  logits.row(3) = three_rows().row(1);
  logits.row(4) = three_rows().row(2);
  const std::vector<std::uint8_t> mask{0, 1, 0, 1, 1};
  routing_context<double> context;
  context.token_mask = mask;
  const l1_value masked = evaluate(relu_l1<fixed_l1>{1, {1e-3}}, logits, context);
  const l1_value wanted = evaluate(relu_l1<fixed_l1>{1, {1e-3}}, three_rows());
  CHECK(masked.value == wanted.value);
  CHECK(masked.gradient.row(0).isZero(0));
  CHECK(masked.gradient.row(2).isZero(0));
  CHECK(test::same_bits(matrix<double>(masked.gradient.row(1)), matrix<double>(wanted.gradient.row(0))));
  CHECK(test::same_bits(matrix<double>(masked.gradient.bottomRows(2)), matrix<double>(wanted.gradient.bottomRows(2))));
}

TEST_CASE("relu_l1: zero where there is nothing to count, NaN where a token that counts is NaN", "[loss][relu_l1]") {
  const relu_l1<fixed_l1> loss{1, {1.0}};
  CHECK(evaluate(loss, matrix<double>(0, 4)).value == 0);
  const l1_value silent = evaluate(loss, matrix<double>::Constant(3, 4, -1));
  CHECK(silent.value == 0);
  CHECK(silent.gradient.isZero(0));
  CHECK(evaluate(loss, matrix<double>::Zero(3, 4)).gradient.isZero(0));  // the derivative at exactly 0 is 0
  CHECK(evaluate(relu_l1<fixed_l1>{1, {0.0}}, three_rows()).gradient.isZero(0));
  matrix<double> broken = three_rows();
  broken(0, 1) = quiet_nan<double>();
  CHECK(is_nan(evaluate(loss, broken).value));
}

TEST_CASE("relu_l1: refuses what makes no sense", "[loss][relu_l1]") {
  using Catch::Matchers::Contains;
  CHECK_THROWS_WITH((relu_l1<fixed_l1>{0, {1.0}}), Contains("k = 0"));
  CHECK_THROWS_WITH((relu_l1<fixed_l1>{1, {1.0}, {.layers = 0}}), Contains("layers = 0"));
}

TEST_CASE("relu_l1: every promise of a loss", "[loss][relu_l1][conformance]") {
  relu_router<double> router{6, 5};
  initialize(router, 3);
  test::check_loss_promises("balanced", relu_l1{2, fixed_l1{0.5}}, router);
  test::check_loss_promises("plain", relu_l1{2, fixed_l1{0.5}, {.balanced = false, .layers = 3}}, router);
}
