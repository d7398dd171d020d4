#include <sluice/gate/joined.hpp>

#include <sluice/gate/two_layer.hpp>

#include "gate_check.hpp"

using namespace sluice;

TEST_CASE("joined_gate: features stand in front of the token", "[gate]") {
  joined_gate gate{linear_gate<double>(3, 2), 1};
  gate.inner().weight().map() << 1, 10, 100, 2, 20, 200;
  CHECK((gate.inputs() == 2 && gate.features() == 1));
  matrix<double> c(2, 1), x(2, 2), expected(2, 2);
  c << 3, -1;
  x << 1, 2, 0, 1;
  expected << 213, 426, 99, 198;
  routing_context<double> context;
  context.features = c;
  CHECK(test::largest_difference(test::score(gate, x, context), expected) == 0);
  c(1, 0) = quiet_nan<double>();
  const matrix<double> logits = test::score(gate, x, context);
  CHECK(logits(0, 0) == 213);
  CHECK((is_nan(logits(1, 0)) && is_nan(logits(1, 1))));
}

TEST_CASE("joined_gate: gradients by x, parameters and features equal central differences", "[gate][gradient]") {
  joined_gate gate{two_layer_gate<double>(5, 3, {.hidden = 4}), 2};
  initialize(gate, 31);
  matrix<double> c = test::random_matrix<double>(6, 2, 34);
  auto context = test::training_context<double>();
  context.features = c;
  const matrix<double> x = test::random_matrix<double>(6, 3, 32);
  decltype(gate)::tape tape;
  test::pull_back(gate, x, test::random_matrix<double>(6, 3, 33), context, tape);
  const matrix<double> dc = tape.features_gradient().map();
  const auto report = test::check_gate(gate, x, 33, context, {{"features", test::span_of(c), test::span_of(dc)}});
  INFO(report.describe());
  CHECK(report.checked == 12 + 18 + 20 + 12);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("joined_gate: refuses widths that do not fit", "[gate]") {
  CHECK_THROWS_WITH((joined_gate{linear_gate<float>(3, 2), 3}),
                    Catch::Matchers::Contains("F + D = 3 numbers, and F = 3"));
  const joined_gate gate{linear_gate<float>(3, 2), 1};
  CHECK_THROWS_WITH(test::score(gate, matrix<float>::Zero(4, 2).eval()),
                    Catch::Matchers::Contains("[4, 1], not [0, 0]"));
  CHECK(test::score(gate, matrix<float>(0, 2)).rows() == 0);
}
