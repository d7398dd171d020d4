#include <sluice/loss/router_z.hpp>

#include "loss_case.hpp"

using namespace sluice;

TEST_CASE("router_z_loss: fixture F", "[loss]") {
  auto c = test::fixture_f(2);
  CHECK(c.evaluate(router_z_loss{.coefficient = 1}) == Approx(7.288395).margin(test::six_decimals));
}

TEST_CASE("router_z_loss: logits of zero give the squared logarithm of E, a shift is seen", "[loss]") {
  test::loss_case<double> c;
  c.set_clean(matrix<double>::Zero(5, 7));
  const double log7 = std::log(7.0);
  CHECK(c.evaluate(router_z_loss{.coefficient = 1}) == Approx(log7 * log7).epsilon(1e-14));
  c.seen.clean.map().array() += 3;
  CHECK(c.evaluate(router_z_loss{.coefficient = 1}) == Approx((3 + log7) * (3 + log7)).epsilon(1e-14));
}

TEST_CASE("router_z_loss: large logits do not overflow", "[loss]") {
  test::loss_case<float> c;
  matrix<float> logits(1, 2);
  logits << 1e4f, 1e4f;
  c.set_clean(logits);
  CHECK(c.evaluate(router_z_loss{.coefficient = 1}) == Approx(std::pow(1e4 + std::log(2.0), 2)).epsilon(1e-6));
  CHECK(c.gradients.clean(0, 0) == Approx(1e4 + std::log(2.0)).epsilon(1e-6));
}

TEST_CASE("router_z_loss: gradients equal central differences", "[loss][gradient]") {
  const auto logits = GENERATE(loss_logits::clean, loss_logits::noisy);
  auto c = test::random_case(9, 5, 91);
  const auto report = c.check(router_z_loss{.coefficient = 0.3, .logits = logits});
  INFO(report.describe());
  CHECK(report.checked == 90);
  CHECK(report.largest_error < 1e-6);
}
