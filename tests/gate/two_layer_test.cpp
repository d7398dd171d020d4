#include <sluice/gate/two_layer.hpp>

#include "gate_check.hpp"

using namespace sluice;

TEST_CASE("two_layer_gate: logits by hand", "[gate]") {
  two_layer_gate<double> gate(2, 1, {.hidden = 2});
  gate.weight1().map() << 1, -1, 0.5, 2;
  gate.weight2().map() << 3, -2;
  matrix<double> x(1, 2);
  x << 0.25, 0.5;
  CHECK(test::score(gate, x)(0, 0) == Approx(3 * std::tanh(-0.25) - 2 * std::tanh(1.125)).epsilon(1e-14));
}

TEST_CASE("two_layer_gate: the hidden width is 8E unless told otherwise", "[gate]") {
  CHECK(two_layer_gate<float>(5, 6).hidden() == 48);
  CHECK(two_layer_gate<float>(5, 6, {.hidden = 7}).hidden() == 7);
}

TEST_CASE("two_layer_gate: gradients equal central differences", "[gate][gradient]") {
  two_layer_gate<double> gate(5, 4, {.hidden = 6});
  initialize(gate, 31);
  const auto report =
      test::check_gate(gate, test::random_matrix<double>(7, 5, 32), 33, test::training_context<double>());
  INFO(report.describe());
  CHECK(report.checked == 35 + 30 + 24);
  CHECK(report.largest_error < 1e-6);
}

TEMPLATE_TEST_CASE("two_layer_gate: executors, NaN, no tokens", "[gate]", float, double) {
  two_layer_gate<TestType> gate(13, 37);
  initialize(gate, 35);
  test::check_gate_promises(gate, 36);
}

TEST_CASE("two_layer_gate: refuses sizes below 1", "[gate]") {
  CHECK_THROWS_AS(two_layer_gate<float>(0, 4), std::invalid_argument);
  CHECK_THROWS_AS(two_layer_gate<float>(4, 0), std::invalid_argument);
  CHECK_THROWS_AS(two_layer_gate<float>(4, 4, {.hidden = -1}), std::invalid_argument);
}
