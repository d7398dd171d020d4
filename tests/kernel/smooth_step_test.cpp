#include <sluice/kernel/smooth_step.hpp>

#include "support.hpp"

using namespace sluice;
using kernel::smooth_step;

TEST_CASE("smooth_step: published values", "[kernel][smooth_step]") {
  const double eps = test::bound<double>(4);
  CHECK(std::abs(smooth_step<double>(-.25, 1).high - 0.15625) <= eps);
  CHECK(smooth_step<double>(0, 1).high == 0.5);
  CHECK(std::abs(smooth_step<double>(.1, 1).high - 0.648) <= eps);
  CHECK(std::abs(smooth_step<double>(.25, 1).high - 0.84375) <= eps);
  CHECK(std::abs(smooth_step<double>(.1, 1).slope - 1.44) <= eps);
  CHECK(std::abs(smooth_step<double>(.5, 2).high - 0.84375) <= eps);
}

TEMPLATE_TEST_CASE("smooth_step: the polynomial, its complement and its slope", "[kernel][smooth_step]", float,
                   double) {
  using S = TestType;
  const double gamma = GENERATE(0.5, 1.0, 3.0);
  for (double z = -2; z <= 2; z += 0.01) {
    const smooth_step<S> s{S(z), S(gamma)};
    const double c = std::clamp(z, -gamma / 2, gamma / 2);
    const double wanted = -2 * c * c * c / (gamma * gamma * gamma) + 3 * c / (2 * gamma) + 0.5;
    const double slope = -6 * c * c / (gamma * gamma * gamma) + 3 / (2 * gamma);
    // z is rounded to S before it is used: half an ulp of 2, times the slope of at most 3.
    const double eps = test::bound<S>(4, S(3 / gamma));
    CHECK(std::abs(double(s.high) - wanted) <= eps);
    CHECK(std::abs(double(s.low) - (1 - wanted)) <= eps);
    CHECK(std::abs(double(s.slope) - slope) <= test::bound<S>(4, S(6 / gamma / gamma)));
  }
}

TEMPLATE_TEST_CASE("smooth_step: where a side is zero the slope is zero, and only there", "[kernel][smooth_step]",
                   float, double) {
  using S = TestType;
  const S gamma = GENERATE(S(1), S(0.7), S(3));
  for (const S sign : {S(-1), S(1)}) {
    S z = sign * gamma / 2;
    for (int i = 0; i < 20; ++i) z = std::nextafter(z, sign * gamma);  // from outside over the edge
    for (int i = 0; i < 60; ++i, z = std::nextafter(z, S(0))) {
      const smooth_step<S> s(z, gamma);
      const S vanishing = sign < 0 ? s.high : s.low;
      CHECK((vanishing == 0) == (s.slope == 0));
      CHECK(vanishing >= 0);
      CHECK(s.slope >= 0);
    }
  }
  const S infinity = std::numeric_limits<S>::infinity();
  CHECK(smooth_step<S>(infinity, gamma).high == 1);
  CHECK(smooth_step<S>(infinity, gamma).low == 0);
  CHECK(smooth_step<S>(-infinity, gamma).high == 0);
  CHECK(smooth_step<S>(-infinity, gamma).slope == 0);
}
