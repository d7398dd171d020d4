#include <sluice/gate/neuron_magnitude.hpp>

#include "gate_check.hpp"

using namespace sluice;

TEST_CASE("neuron_magnitude_gate: the size of a unit's output, by hand", "[gate]") {
  neuron_magnitude_gate<double> gate(2, 3);
  matrix<double> g(3, 2), u(3, 2), x(1, 2);
  g << 3, 4, 0, -2, 0, 0;
  u << 1, 0, 0, 5, 1, 1;
  x << 2, -1;
  gate.set_units(g, u);
  const auto silu_of = [](double z) { return z / (1 + std::exp(-z)); };
  const matrix<double> logits = test::score(gate, x);
  CHECK(logits(0, 0) == Approx(silu_of(0.4) * 2).epsilon(1e-14));  // (3, 4) / 5 and (1, 0)
  CHECK(logits(0, 1) == Approx(silu_of(1.0)).epsilon(1e-14));      // (0, -1): 1, and (0, 1): -1
  CHECK(logits(0, 2) == 0);
  CHECK_THROWS_WITH(gate.set_units(g, matrix<double>::Zero(2, 2)), Catch::Matchers::Contains("[2, 2]"));
}

TEST_CASE("neuron_magnitude_gate: gradients, executors, NaN, no tokens", "[gate][gradient]") {
  neuron_magnitude_gate<double> gate(5, 4);
  initialize(gate, 71);
  const auto report =
      test::check_gate(gate, test::random_matrix<double>(7, 5, 72), 73, test::training_context<double>());
  INFO(report.describe());
  CHECK(report.checked == 35 + 40);
  CHECK(report.largest_error < 1e-6);
  neuron_magnitude_gate<float> wide(13, 37);
  initialize(wide, 74);
  test::check_gate_promises(wide, 75);
}
