#include <sluice/inspect/router_agreement.hpp>

#include "../support.hpp"

using namespace sluice;

TEST_CASE("router_agreement: the line by hand, from below the diagonal alone", "[inspect]") {
  // x below the diagonal: 0, 1, 2;  y: 1, 3, 2:  xx = 2, yy = 2, xy = (-1)(-1) + 0 + (1)(0) = 1
  matrix<double> x = matrix<double>::Constant(3, 3, 77), y = matrix<double>::Constant(3, 3, -55);
  x(1, 0) = 0, x(2, 0) = 1, x(2, 1) = 2;
  y(1, 0) = 1, y(2, 0) = 3, y(2, 1) = 2;
  const similarity_line line = line_through_similarities(x, y);
  CHECK_THAT(line.slope, Catch::WithinAbs(0.5, 1e-15));
  CHECK_THAT(line.intercept, Catch::WithinAbs(1.5, 1e-15));
  CHECK_THAT(line.squared_correlation, Catch::WithinAbs(0.25, 1e-15));
}

TEST_CASE("router_agreement: rows that repeat the experts' agree wholly, others hardly", "[inspect]") {
  const matrix<float> rows = test::random_matrix<float>(8, 16, 1);
  const similarity_line same = router_agreement(rows, row_cosines(rows));
  CHECK_THAT(same.slope, Catch::WithinAbs(1, 1e-12));
  CHECK_THAT(same.intercept, Catch::WithinAbs(0, 1e-12));
  CHECK_THAT(same.squared_correlation, Catch::WithinAbs(1, 1e-12));
  // 28 pairs at random: r^2 is 1/27 on average.
  CHECK(router_agreement(rows, row_cosines(test::random_matrix<float>(8, 16, 2))).squared_correlation < 0.3);
}

TEST_CASE("router_agreement: what is not determined is NaN", "[inspect]") {
  for (const index_t E : {0, 1, 2}) {
    const similarity_line line = line_through_similarities(matrix<double>::Zero(E, E), matrix<double>::Zero(E, E));
    CHECK(is_nan(line.slope));
    CHECK(is_nan(line.squared_correlation));
  }
  const matrix<double> varies = row_cosines(test::random_matrix<double>(4, 3, 1)),
                       constant = matrix<double>::Ones(4, 4);
  CHECK(is_nan(line_through_similarities(constant, varies).slope));
  CHECK(line_through_similarities(varies, constant).slope == 0);
  CHECK(line_through_similarities(varies, constant).intercept == 1);
  CHECK(is_nan(line_through_similarities(varies, constant).squared_correlation));
  matrix<double> broken = varies;
  broken(2, 1) = quiet_nan<double>();
  CHECK(is_nan(line_through_similarities(broken, varies).intercept));
  CHECK_THROWS_WITH(line_through_similarities(varies, matrix<double>::Zero(3, 3)),
                    Catch::Contains("[4, 4] and [3, 3]"));
}
