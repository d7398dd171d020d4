#include <sluice/gate/features.hpp>

#include <sluice/gate/two_layer.hpp>
#include <sluice/train/check_gate.hpp>

#include "gate_check.hpp"

using namespace sluice;

TEST_CASE("features_gate: scores features and no tokens", "[gate]") {
  features_gate gate{linear_gate<double>(2, 2), 3};
  gate.inner().weight().map() << 1, 10, 2, 20;
  CHECK((gate.inputs() == 3 && gate.features() == 2));
  matrix<double> c(2, 2), expected(2, 2);
  c << 3, 1, -1, 2;
  expected << 13, 26, 19, 38;
  routing_context<double> context;
  context.features = c;
  const matrix<double> x = matrix<double>::Constant(2, 3, quiet_nan<double>());  // a matter of the router
  CHECK(test::largest_difference(test::score(gate, x, context), expected) == 0);
  c(1, 0) = quiet_nan<double>();
  const matrix<double> logits = test::score(gate, matrix<double>::Zero(2, 3).eval(), context);
  CHECK(logits(0, 0) == 13);
  CHECK((is_nan(logits(1, 0)) && is_nan(logits(1, 1))));
}

TEST_CASE("features_gate: gradients by parameters and features equal central differences", "[gate][gradient]") {
  features_gate gate{two_layer_gate<double>(5, 3, {.hidden = 4}), 2};
  initialize(gate, 31);
  matrix<double> c = test::random_matrix<double>(6, 5, 34);
  auto context = test::training_context<double>();
  context.features = c;
  const matrix<double> x = test::random_matrix<double>(6, 2, 32);
  decltype(gate)::tape tape;
  test::pull_back(gate, x, test::random_matrix<double>(6, 3, 33), context, tape);
  const matrix<double> dc = tape.features_gradient().map();
  const auto report = test::check_gate(gate, x, 33, context, {{"features", test::span_of(c), test::span_of(dc)}});
  INFO(report.describe());
  CHECK(report.checked == 30 + 12 + 20 + 12);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("features_gate: NaN among the features of padding and of a token reaches no gradient", "[gate]") {
  features_gate gate{linear_gate<double>(2, 3), 4};
  initialize(gate, 5);
  matrix<double> c = test::random_matrix<double>(5, 2, 6);
  const std::vector<std::uint8_t> mask{1, 0, 1, 1, 1};
  auto context = test::training_context<double>();
  context.features = c;
  context.token_mask = mask;
  const matrix<double> x = test::random_matrix<double>(5, 4, 7);
  matrix<double> d = test::random_matrix<double>(5, 3, 8);
  d.row(1).setZero();
  d.row(3).setZero();
  decltype(gate)::tape tape;
  test::pull_back(gate, x, d, context, tape);
  const matrix<double> expected = gate.inner().weight().gradient_matrix();
  c.row(1).setConstant(quiet_nan<double>());
  c(3, 1) = quiet_nan<double>();
  zero_gradients(gate);
  test::pull_back(gate, x, d, context, tape);
  CHECK(test::same_bits(gate.inner().weight().gradient_matrix(), expected));
  CHECK(tape.features_gradient().map().allFinite());
}

TEST_CASE("features_gate: refuses widths that do not fit", "[gate]") {
  CHECK_THROWS_WITH((features_gate{linear_gate<float>(3, 2), 0}), Catch::Matchers::Contains("D >= 1, not 0"));
  const features_gate gate{linear_gate<float>(3, 2), 2};
  CHECK_THROWS_WITH(test::score(gate, matrix<float>::Zero(4, 2).eval()),
                    Catch::Matchers::Contains("[4, 3], not [0, 0]"));
  CHECK(test::score(gate, matrix<float>(0, 2)).rows() == 0);
}
