#include <sluice/gate/standardized.hpp>

#include <sluice/gate/residual.hpp>
#include <sluice/gate/two_layer.hpp>

#include "gate_check.hpp"

using namespace sluice;

TEST_CASE("standardized_gate: every row gets the target's deviation and keeps its direction", "[gate]") {
  standardized_gate<linear_gate<double>> gate(4, 6, 1.5);
  initialize(gate, 81);
  const matrix<double> x = 3 * test::random_matrix<double>(5, 4, 82);
  const matrix<double> raw = test::score(gate.inner(), x);
  const matrix<double> scaled = test::score(gate, x);
  for (index_t t = 0; t < 5; ++t) {
    const double mean = scaled.row(t).mean();
    CHECK(std::sqrt((scaled.row(t).array() - mean).square().sum() / 5) == Approx(1.5).epsilon(1e-13));
    CHECK(scaled(t, 0) / raw(t, 0) == Approx(scaled(t, 5) / raw(t, 5)).epsilon(1e-13));
  }
}

TEST_CASE("standardized_gate: gradients equal central differences", "[gate][gradient]") {
  standardized_gate<two_layer_gate<double>> gate(two_layer_gate<double>(5, 4, {.hidden = 6}), 0.7);
  initialize(gate, 83);
  const auto report =
      test::check_gate(gate, test::random_matrix<double>(7, 5, 84), 85, test::training_context<double>());
  INFO(report.describe());
  CHECK(report.checked == 35 + 30 + 24);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("standardized_gate: equal logits are left as they are", "[gate]") {
  standardized_gate<linear_gate<double>> gate(2, 3);
  gate.inner().weight().map() << 1, 2, 1, 2, 1, 2;
  matrix<double> x(1, 2), dlogits(1, 3);
  x << 3, 4;
  dlogits << 1, 10, 100;
  CHECK(test::score(gate, x) == matrix<double>::Constant(1, 3, 11));
  standardized_gate<linear_gate<double>>::tape tape;
  const matrix<double> dx = test::pull_back(gate, x, dlogits, test::training_context<double>(), tape);
  CHECK(dx(0, 0) == 111);
  CHECK(dx(0, 1) == 222);
}

TEST_CASE("standardized_gate: logits that are infinite, or whose squares are, are left as they are", "[gate]") {
  const double large = GENERATE(std::numeric_limits<double>::infinity(), -1e200);
  standardized_gate<linear_gate<double>> gate(1, 3);
  gate.inner().weight().map() << 1, large, 2;
  const matrix<double> x = matrix<double>::Ones(1, 1);
  matrix<double> dlogits(1, 3), expected(1, 3);
  dlogits << 1, 0, 100;
  expected << 1, large, 2;
  CHECK(test::score(gate, x) == expected);
  standardized_gate<linear_gate<double>>::tape tape;
  test::pull_back(gate, x, dlogits, test::training_context<double>(), tape);
  CHECK(tape.dlogits.map() == dlogits);
}

TEMPLATE_TEST_CASE("standardized_gate: executors, NaN, no tokens", "[gate]", float, double) {
  standardized_gate<linear_gate<TestType>> gate(13, 37);
  initialize(gate, 87);
  test::check_gate_promises(gate, 88);
}

TEST_CASE("standardized_gate: reaches the residual gate's gradient through nested tapes", "[gate]") {
  using gate_type = standardized_gate<residual_gate<linear_gate<double>>>;
  gate_type gate(4, 5);
  initialize(gate, 89);
  const matrix<double> x = test::random_matrix<double>(6, 4, 90);
  matrix<double> previous = test::random_matrix<double>(6, 5, 91);
  auto context = test::training_context<double>();
  context.previous_logits = previous;
  gate_type::tape tape;
  test::pull_back(gate, x, test::random_matrix<double>(6, 5, 92), context, tape);
  const matrix<double> dprevious = tape.previous_logits_gradient().map();
  const auto report =
      test::check_gate(gate, x, 92, context, {{"previous_logits", test::span_of(previous), test::span_of(dprevious)}});
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("standardized_gate: one expert, or no deviation, is refused", "[gate]") {
  CHECK_THROWS_AS(standardized_gate<linear_gate<float>>(3, 1), std::invalid_argument);
  CHECK_THROWS_AS(standardized_gate<linear_gate<float>>(3, 2, 0.0f), std::invalid_argument);
}
