#include <sluice/gate/normalized.hpp>

#include "gate_check.hpp"

using namespace sluice;

namespace {

template <typename Scalar>
auto gate_of(index_t inputs, index_t experts, Scalar factor) {
  return normalized_gate{linear_gate<Scalar>(inputs, experts), rms_norm<Scalar>(inputs, {.epsilon = Scalar(1e-6)}),
                         factor};
}

}  // namespace

TEST_CASE("normalized_gate: scores normalised and scaled tokens", "[gate]") {
  auto gate = gate_of<double>(4, 3, 0.5);
  initialize(gate, 91);
  for (index_t d = 0; d < 4; ++d) gate.norm().gain().data()[d] = 1 + 0.5 * static_cast<double>(d);
  const matrix<double> x = 3 * test::random_matrix<double>(5, 4, 92);
  const matrix<double> logits = test::score(gate, x);
  const matrix<double> weight = gate.inner().weight().to_matrix();
  for (index_t t = 0; t < 5; ++t) {
    const double length = std::sqrt(x.row(t).squaredNorm() / 4 + 1e-6);
    for (index_t e = 0; e < 3; ++e) {
      double expected = 0;
      for (index_t d = 0; d < 4; ++d)
        expected += weight(e, d) * 0.5 * x(t, d) / length * (1 + 0.5 * static_cast<double>(d));
      CHECK(std::abs(logits(t, e) - expected) <= test::bound<double>(4, 16.0));
    }
  }
}

TEST_CASE("normalized_gate: gradients equal central differences", "[gate][gradient]") {
  auto gate = gate_of<double>(5, 4, 0.4);
  initialize(gate, 93);
  const auto report =
      test::check_gate(gate, test::random_matrix<double>(7, 5, 94), 95, test::training_context<double>());
  INFO(report.describe());
  CHECK(report.checked == 35 + 20 + 5);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("normalized_gate: executors, NaN, no tokens, names of parameters, what makes no sense", "[gate]") {
  auto gate = gate_of<float>(13, 37, 0.5F);
  initialize(gate, 97);
  test::check_gate_promises(gate, 98);
  std::string names;
  for_each_parameter(gate, [&](const std::string& name, const auto&) { names += name + ' '; });
  CHECK(names == "weight norm.gain ");
  CHECK_THROWS_AS(gate_of<float>(3, 2, 0.0F), std::invalid_argument);
  CHECK_THROWS_AS(gate_of<float>(3, 2, std::numeric_limits<float>::infinity()), std::invalid_argument);
  CHECK_THROWS_WITH((normalized_gate{linear_gate<float>(3, 2), rms_norm<float>(2)}),
                    Catch::Matchers::Contains("rows of width 3; the norm is for width 2"));
}
