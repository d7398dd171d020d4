#include <sluice/loss/entropy.hpp>

#include "loss_case.hpp"

using namespace sluice;

TEST_CASE("entropy_loss: even probabilities give its minimum", "[loss]") {
  test::loss_case<double> c;
  c.set_clean(matrix<double>::Zero(3, 4));
  CHECK(c.evaluate(entropy_loss{.coefficient = 1}) == Approx(-1.386294).margin(test::six_decimals));
  CHECK(c.gradients.clean.map().isZero(test::bound<double>(4)));
}

TEST_CASE("entropy_loss: fixture F", "[loss]") {
  // q = (0.481849, 0.341700, 0.100159, 0.076292): -0.351810 - 0.366925 - 0.230465 - 0.196314.
  auto c = test::fixture_f(1);
  CHECK(c.evaluate(entropy_loss{.coefficient = 1}) == Approx(-1.145514).margin(4 * test::six_decimals));
}

TEST_CASE("entropy_loss: gradients equal central differences", "[loss][gradient]") {
  const auto logits = GENERATE(loss_logits::clean, loss_logits::noisy);
  const auto coefficient = GENERATE(0.5, -0.5);
  auto c = test::random_case(9, 5, 95);
  const auto report = c.check(entropy_loss{.coefficient = coefficient, .logits = logits});
  INFO(report.describe());
  CHECK(report.checked == 90);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("entropy_loss: an expert of probability zero adds nothing", "[loss]") {
  test::loss_case<double> c;
  matrix<double> logits = test::random_matrix<double>(4, 3, 97);
  logits.col(1).setConstant(-std::numeric_limits<double>::infinity());
  c.set_clean(logits);
  const double value = c.evaluate(entropy_loss{.coefficient = 1});
  const matrix<double> gradient = c.gradients.clean.map();
  test::loss_case<double> two;
  matrix<double> rest(4, 2);
  rest << logits.col(0), logits.col(2);
  two.set_clean(rest);
  CHECK(value == Approx(two.evaluate(entropy_loss{.coefficient = 1})).epsilon(1e-13));
  CHECK(gradient.col(1).isZero(0));
  CHECK(gradient.allFinite());
}
