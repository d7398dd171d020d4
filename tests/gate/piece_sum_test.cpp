#include <sluice/gate/piece_sum.hpp>

#include <sluice/gate/two_layer.hpp>
#include <sluice/train/check_gate.hpp>

#include "gate_check.hpp"

using namespace sluice;

TEST_CASE("piece_sum_gate: the inner gate reads the sum of the pieces", "[gate]") {
  piece_sum_gate gate{linear_gate<double>(2, 2), 3};
  gate.inner().weight().map() << 1, 10, 2, -1;
  CHECK((gate.inputs() == 6 && gate.pieces() == 3));
  matrix<double> x(1, 6), expected(1, 2);
  x << 1, 2, 3, 4, 5, 6;
  expected << 9 + 120, 18 - 12;
  CHECK(test::score(gate, x) == expected);
  CHECK_THROWS_AS((piece_sum_gate{linear_gate<double>(2, 2), 0}), std::invalid_argument);
}

TEST_CASE("piece_sum_gate: keeps the promises of gates", "[gate][gradient]") {
  piece_sum_gate gate{two_layer_gate<double>(3, 4, {.hidden = 5}), 4};
  initialize(gate, 3);
  const auto report = sluice::check_gate(gate);
  INFO(report.describe());
  CHECK(report.passed());
}
