#include <sluice/gate/normalized_weights.hpp>

#include "gate_check.hpp"

using namespace sluice;

namespace {

template <typename Scalar>
auto normed_gate(index_t inputs, index_t experts) {
  return normalized_weights_gate{linear_gate<Scalar>(inputs, experts, {.bias = true}),
                                 layer_norm<Scalar>(inputs, {.bias = true})};
}

}  // namespace

TEST_CASE("normalized_weights_gate: tokens meet normalised vectors", "[gate]") {
  normalized_weights_gate gate{linear_gate<double>(4, 2, {.bias = true}), unit_norm<double>(4)};
  matrix<double> weight(2, 4);
  weight << 3, 0, 4, 0, 0, 2, 0, 0;
  gate.weight().assign(weight);
  gate.bias().fill([](index_t e) { return e == 0 ? 0.5 : -1.0; });
  matrix<double> x(1, 4);
  x << 1, 2, 3, 4;
  const matrix<double> logits = test::score(gate, x);
  CHECK(std::abs(logits(0, 0) - (0.6 * 1 + 0.8 * 3 + 0.5)) <= 1e-6);  // the norm has 1e-6 inside its root
  CHECK(std::abs(logits(0, 1) - (2 - 1)) <= 1e-6);
  // An expert's vector wins nothing by its length.
  gate.weight().assign(weight * 1000);
  CHECK(test::largest_difference(test::score(gate, x), logits) <= 1e-6);
}

TEST_CASE("normalized_weights_gate: gradients equal central differences", "[gate][gradient]") {
  auto gate = normed_gate<double>(5, 4);
  initialize(gate, 193);
  const auto report =
      test::check_gate(gate, test::random_matrix<double>(7, 5, 194), 195, test::training_context<double>());
  INFO(report.describe());
  CHECK(report.checked == 35 + 20 + 4 + 5 + 5);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("normalized_weights_gate: executors, NaN, no tokens, names of parameters", "[gate]") {
  auto gate = normed_gate<float>(13, 37);
  initialize(gate, 197);
  test::check_gate_promises(gate, 198);
  std::string names;
  for_each_parameter(gate, [&](const std::string& name, const auto&) { names += name + ' '; });
  CHECK(names == "weight bias weight_norm.gain weight_norm.bias ");
  CHECK_THROWS_WITH((normalized_weights_gate<float, rms_norm<float>>{linear_gate<float>(3, 2), rms_norm<float>(2)}),
                    Catch::Matchers::Contains("rows of width 3; the norm is for width 2"));
}
