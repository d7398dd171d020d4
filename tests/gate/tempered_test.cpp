#include <sluice/gate/activated.hpp>
#include <sluice/gate/tempered.hpp>
#include <sluice/gate/transformed.hpp>

#include "gate_check.hpp"

using namespace sluice;

namespace {

template <typename Scalar>
auto activation_dense_to_sparse(index_t inputs, index_t experts, double tau) {
  return tempered_gate(activated_gate(linear_gate<Scalar>(inputs, experts)), tau);
}

}  // namespace

TEST_CASE("tempered and activated gates: logits by hand", "[gate]") {
  auto gate = activation_dense_to_sparse<double>(2, 2, 0.5);
  gate.inner().inner().weight().map() << 1, -1, 0.5, 2;
  gate.inner().offset().data()[1] = -3;
  matrix<double> x(1, 2);
  x << 0.25, 0.5;
  const auto logistic = [](double z) { return 1 / (1 + std::exp(-z)); };
  const matrix<double> logits = test::score(gate, x);
  CHECK(logits(0, 0) == Approx(2 * logistic(-0.25)).epsilon(1e-14));
  CHECK(logits(0, 1) == Approx(2 * (logistic(1.125) - 3)).epsilon(1e-14));
  CHECK(gate.temperature() == Approx(0.5).epsilon(1e-15));
}

TEST_CASE("tempered, activated and transformed gates: gradients equal central differences", "[gate][gradient]") {
  auto gate = tempered_gate(activated_gate(transformed_gate(linear_gate<double>(5, 4))), 0.6);
  initialize(gate, 31);
  const auto report =
      test::check_gate(gate, test::random_matrix<double>(7, 5, 32), 33, test::training_context<double>());
  INFO(report.describe());
  CHECK(report.checked == 35 + 20 + 4 + 1);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("tempered, activated and transformed gates: executors, NaN, no tokens, names of parameters", "[gate]") {
  auto gate = activation_dense_to_sparse<float>(13, 37, 2);
  initialize(gate, 35);
  test::check_gate_promises(gate, 36);
  test::check_gate_promises(transformed_gate(linear_gate<float>(13, 5)), 37);
  std::string names;
  for_each_parameter(gate, [&](const std::string& name, const auto&) { names += name + ' '; });
  CHECK(names == "weight offset temperature ");
}

TEST_CASE("tempered and activated gates: an activation keeps temperature and slopes apart", "[gate]") {
  const matrix<double> x = test::random_matrix<double>(9, 5, 41);
  /// How much the logits change where slopes, offsets and temperature are four times what they were.
  const auto change = [&](auto phi) {
    using inner = activated_gate<linear_gate<double>, decltype(phi)>;
    tempered_gate<inner> gate(inner(linear_gate<double>(5, 4)), 0.5);
    initialize(gate, 42);
    gate.inner().offset().fill([](index_t e) { return 0.25 * double(e); });
    tempered_gate<inner> scaled(inner(linear_gate<double>(5, 4)), 2);
    initialize(scaled, 42);
    scaled.inner().inner().weight().assign(4 * gate.inner().inner().weight().to_matrix());
    scaled.inner().offset().fill([](index_t e) { return double(e); });
    return test::largest_difference(test::score(gate, x), test::score(scaled, x));
  };
  CHECK(change(no_activation{}) < test::bound<double>(5, 16));
  CHECK(change(hyperbolic_tangent{}) > 0.1);
}

TEST_CASE("activated_gate: no gradient is no gradient, whatever the logit", "[gate]") {
  activated_gate<linear_gate<double>, gelu> gate(linear_gate<double>(1, 2));
  gate.inner().weight().map() << 1, 1;
  matrix<double> x(2, 1), dlogits = matrix<double>::Zero(2, 2);
  x << quiet_nan<double>(), 2;
  dlogits(1, 0) = 1;
  decltype(gate)::tape tape;
  const matrix<double> dx = test::pull_back(gate, x, dlogits, test::training_context<double>(), tape);
  CHECK(tape.dlogits.map().row(0).isZero(0));
  CHECK(dx(1, 0) == gelu::derivative(2.0));
}

TEST_CASE("tempered_gate: refuses temperatures that are none", "[gate]") {
  for (const double tau : {0.0, -1.0, HUGE_VAL, quiet_nan<double>()})
    CHECK_THROWS_AS(tempered_gate(linear_gate<float>(3, 2), tau), std::invalid_argument);
}
