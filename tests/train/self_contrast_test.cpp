#include <sluice/train/self_contrast.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

matrix<double> contrast_of(const self_contrast& f, const matrix<double>& strong, const matrix<double>& weak) {
  return f(strong, weak);
}

}  // namespace

TEST_CASE("self_contrast: the worked example", "[train][self_contrast]") {
  matrix<double> strong(1, 4), weak(1, 4);
  strong << 2, 1.8, 0, -3;
  weak << 2.5, 1, -2, -9;
  const matrix<double> scores = contrast_of({}, strong, weak);  // the cut is at 2 + log 0.1 = -0.3026
  CHECK(scores(0, 0) == Approx(1.75).epsilon(1e-14));
  CHECK(scores(0, 1) == Approx(2.2).epsilon(1e-14));
  CHECK(scores(0, 2) == Approx(1.0).epsilon(1e-14));
  CHECK(order_key(scores(0, 3)) == order_key(-std::numeric_limits<double>::infinity()));
  // Nothing to contrast with: the strong pass's own order.
  CHECK(contrast_of({.beta = 0}, strong, weak)(0, 0) == 2);
  CHECK(test::largest_difference(matrix<double>(contrast_of({}, strong, strong).leftCols(3)),
                                 matrix<double>(strong.leftCols(3))) < 1e-14);
  // Temperatures divide; a cut at the best leaves that one alone, and its equals.
  strong(0, 1) = 2;
  const matrix<double> best =
      contrast_of({.alpha = 1, .beta = 1, .strong_temperature = 2, .weak_temperature = 0.5}, strong, weak);
  CHECK(best(0, 0) == Approx(2 * 1 - 5).epsilon(1e-14));
  CHECK(best(0, 1) == Approx(2 * 1 - 2).epsilon(1e-14));
  CHECK(is_nan(best(0, 2)) == false);
  CHECK(order_key(best(0, 2)) == order_key(-std::numeric_limits<double>::infinity()));
}

TEST_CASE("self_contrast: NaN, no tokens, and what is refused", "[train][self_contrast]") {
  matrix<double> strong(1, 3), weak = matrix<double>::Zero(1, 3);
  strong << quiet_nan<double>(), 1, 0.5;
  const matrix<double> scores = contrast_of({.beta = 1}, strong, weak);
  CHECK(order_key(scores(0, 0)) == order_key(-std::numeric_limits<double>::infinity()));
  CHECK(scores(0, 1) == 2);
  CHECK(contrast_of({}, matrix<double>(0, 5), matrix<double>(0, 5)).rows() == 0);
  CHECK_THROWS_WITH(contrast_of({}, strong, matrix<double>(1, 4)), Catch::Matchers::Contains("[1, 4]"));
  CHECK_THROWS_WITH(contrast_of({.alpha = 0}, strong, weak), Catch::Matchers::Contains("alpha"));
  CHECK_THROWS_WITH(contrast_of({.beta = -1}, strong, weak), Catch::Matchers::Contains("-1"));
  CHECK_THROWS_WITH(contrast_of({.weak_temperature = 0}, strong, weak), Catch::Matchers::Contains("temperatures"));
}
