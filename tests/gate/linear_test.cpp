#include <sluice/gate/linear.hpp>

#include "gate_check.hpp"

using namespace sluice;

TEST_CASE("linear_gate: logits by hand, with and without bias", "[gate]") {
  linear_gate<double> gate(2, 3, {.bias = true});
  gate.weight().map() << 1, 2, 3, 4, -1, 0.5;
  gate.bias().map() << 10, 20, 30;
  matrix<double> x(2, 2);
  x << 1, 1, 2, -1;
  matrix<double> expected(2, 3);
  expected << 13, 27, 29.5, 10, 22, 27.5;
  CHECK(test::score(gate, x) == expected);
  linear_gate<double> plain(2, 3);
  plain.weight().map() = gate.weight().map();
  CHECK(test::score(plain, x) == (expected.rowwise() - Eigen::RowVector3d(10, 20, 30)).eval());
  CHECK(parameter_count(gate) == 9);
  CHECK(parameter_count(plain) == 6);
}

TEST_CASE("linear_gate: gradients equal central differences", "[gate][gradient]") {
  const bool bias = GENERATE(false, true);
  linear_gate<double> gate(5, 4, {.bias = bias});
  initialize(gate, 3);
  const auto report = test::check_gate(gate, test::random_matrix<double>(7, 5, 4), 5, test::training_context<double>());
  INFO(report.describe());
  CHECK(report.checked == 35 + 20 + (bias ? 4 : 0));
  CHECK(report.largest_error < 1e-6);
}

TEMPLATE_TEST_CASE("linear_gate: executors, NaN, no tokens", "[gate]", float, double) {
  linear_gate<TestType> gate(13, 37, {.bias = true});
  initialize(gate, 7);
  test::check_gate_promises(gate, 8);
}

TEST_CASE("linear_gate: refuses sizes below 1", "[gate]") {
  CHECK_THROWS_AS(linear_gate<float>(0, 4), std::invalid_argument);
  CHECK_THROWS_AS(linear_gate<float>(4, 0), std::invalid_argument);
}
