#include <sluice/inspect/cosine.hpp>

#include "../support.hpp"

using namespace sluice;

TEST_CASE("cosine: by hand, with zeros, NaN and numbers whose squares are none", "[inspect]") {
  matrix<double> rows(6, 2);
  rows << 3, 4, -6, -8, 4, -3, 0, 0, quiet_nan<double>(), 1, 3e300, 4e300;
  const matrix<double> c = row_cosines(rows);
  CHECK(c(0, 0) == 1);
  CHECK_THAT(c(0, 1), Catch::WithinAbs(-1, 1e-15));
  CHECK_THAT(c(0, 2), Catch::WithinAbs(0, 1e-15));
  CHECK_THAT(c(0, 5), Catch::WithinAbs(1, 1e-15));
  for (index_t i = 0; i < 6; ++i) {
    CHECK(is_nan(c(i, 4)));
    CHECK(is_nan(c(4, i)));
    if (i != 4) CHECK(c(i, 3) == 0);
  }
  CHECK(row_cosines(matrix<float>(0, 3)).size() == 0);
  CHECK(row_cosines(matrix<float>(2, 0)) == matrix<double>::Zero(2, 2));
  CHECK_THROWS_WITH(row_cosines(matrix<double>::Zero(2, 3), matrix<double>::Zero(2, 4)),
                    Catch::Contains("rows of 3 and of 4"));
}

TEST_CASE("cosine: rows of two matrices, floats too", "[inspect]") {
  const matrix<float> a = test::random_matrix<float>(5, 7, 1), b = test::random_matrix<float>(3, 7, 2);
  const matrix<double> c = row_cosines(a, b);
  for (index_t i = 0; i < 5; ++i)
    for (index_t j = 0; j < 3; ++j) {
      const auto u = a.row(i).cast<double>(), v = b.row(j).cast<double>();
      CHECK_THAT(c(i, j), Catch::WithinAbs(u.dot(v) / (u.norm() * v.norm()), test::bound<double>(7)));
    }
}
