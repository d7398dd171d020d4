#include <sluice/quant/weighted_lloyd.hpp>

#include "support.hpp"

using namespace sluice;

namespace {

const_matrix_map<double> view_of_codes(const matrix<double>& m) { return {m.data(), m.rows(), m.cols()}; }

std::vector<index_t> plainly_nearest(const matrix<double>& x, const matrix<double>& h, const matrix<double>& codes) {
  std::vector<index_t> ids(as_size(x.rows()));
  for (index_t n = 0; n < x.rows(); ++n) {
    double least = 1e300;
    for (index_t k = 0; k < codes.rows(); ++k) {
      const double distance = ((x.row(n) - codes.row(k)).array().square() * h.row(n).array()).sum();
      if (distance < least) ids[as_size(n)] = k, least = distance;
    }
  }
  return ids;
}

}  // namespace

TEST_CASE("weighted_search: the plain loop, by numbers, by products and by columns", "[quant][lloyd]") {
  const matrix<double> x = test::random_matrix<double>(300, 3, 1), codes = test::random_matrix<double>(20, 3, 2);
  const matrix<double> h = test::random_matrix<double>(300, 3, 3).array().square();
  weighted_search<double> search;
  std::vector<index_t> ids(300);
  test::shuffled_threads threads(3);
  search(x, h, view_of_codes(codes), ids.data(), threads);
  CHECK(ids == plainly_nearest(x, h, codes));
  search.of_products(h.cwiseProduct(x), h, view_of_codes(codes), ids.data());
  CHECK(ids == plainly_nearest(x, h, codes));
  const std::vector<double> by_column{0.1, 7, 1};
  search.by_columns(x, by_column, view_of_codes(codes), ids.data());
  const matrix<double> repeated = Eigen::Map<const matrix<double>>(by_column.data(), 1, 3).replicate(300, 1);
  CHECK(ids == plainly_nearest(x, repeated, codes));
  search(x, matrix<double>(), view_of_codes(codes), ids.data());
  CHECK(ids == plainly_nearest(x, matrix<double>::Ones(300, 3), codes));
}

TEST_CASE("weighted_search: ties go to the lowest code, NaN has none, shapes must fit", "[quant][lloyd]") {
  matrix<double> codes(3, 1), x(3, 1);
  codes << 2, 0, 2;
  x << 1, 5, quiet_nan<double>();
  weighted_search<double> search;
  std::vector<index_t> ids(3);
  search(x, matrix<double>::Ones(3, 1), view_of_codes(codes), ids.data());
  CHECK(ids == std::vector<index_t>{0, 0, no_code});
  CHECK_THROWS_AS(search(x, matrix<double>::Ones(2, 1), view_of_codes(codes), ids.data()), std::invalid_argument);
  CHECK_THROWS_AS(search.by_columns(x, std::vector<double>{1, 2}, view_of_codes(codes), ids.data()),
                  std::invalid_argument);
}

TEST_CASE("codes_by_rank: evenly spaced ranks of the distance from the mean", "[quant][lloyd]") {
  matrix<double> x(5, 1);
  x << 0, 1, 2, 3, 9;  // mean 3: by distance 3, 2, 1, 0, 9
  matrix<double> expected(3, 1);
  expected << 3, 1, 9;
  CHECK(codes_by_rank<double>(x, 3) == expected);
  // Halves go to the even rank: 0, 1.5, 3 of the first four, by distance 1, 2, 0, 3 from 1.5.
  matrix<double> four(3, 1);
  four << 1, 0, 3;
  CHECK(codes_by_rank<double>(x.topRows(4), 3) == four);
  CHECK(codes_by_rank<double>(x, 1)(0, 0) == 3);

  // As far as the spread goes there, not as the ruler has it: with columns of 1 and 1000 both count alike.
  matrix<double> wide = test::random_matrix<double>(50, 2, 4);
  const matrix<double> first = codes_by_rank<double>(wide, 7);
  wide.col(1) *= 1024;
  matrix<double> stretched = codes_by_rank<double>(wide, 7);
  stretched.col(1) /= 1024;
  CHECK(stretched == first);
}

TEST_CASE("codes_by_rank: fewer rows than codes, rows on a line, rows that are all alike, rows that are none",
          "[quant][lloyd]") {
  const matrix<double> x = test::random_matrix<double>(3, 2, 5);
  const matrix<double> codes = codes_by_rank<double>(x, 8);
  for (index_t n = 0; n < 3; ++n) CHECK((codes.rowwise() - x.row(n)).rowwise().squaredNorm().minCoeff() == 0);
  matrix<double> line(4, 2);
  line << 0, 0, 1, 1, 2, 2, 7, 7;  // no inverse
  CHECK(codes_by_rank<double>(line, 2).row(1) == line.row(3));
  CHECK(codes_by_rank<double>(matrix<double>::Constant(4, 2, 3), 3) == matrix<double>::Constant(3, 2, 3));
  CHECK_THROWS_AS(codes_by_rank<double>(x, 0), std::invalid_argument);
  CHECK_THROWS_AS(codes_by_rank<double>(x.topRows(0), 2), std::invalid_argument);
  line(1, 1) = quiet_nan<double>();
  CHECK_THROWS_WITH(codes_by_rank<double>(line, 2), Catch::Matchers::Contains("NaN"));
}

TEST_CASE("weighted_lloyd: a code is the weighted mean of its rows, number by number", "[quant][lloyd]") {
  const matrix<double> x = test::random_matrix<double>(200, 2, 6),
                       h = test::random_matrix<double>(200, 2, 7).array().square();
  matrix<double> codes = x.topRows(6);
  const matrix<double> start = codes;
  const std::vector<index_t> ids = plainly_nearest(x, h, start);
  weighted_lloyd<double>(x, h, codes, 1);
  for (index_t k = 0; k < 6; ++k)
    for (index_t d = 0; d < 2; ++d) {
      double sum = 0, weight = 0;
      for (index_t n = 0; n < 200; ++n)
        if (ids[as_size(n)] == k) sum += h(n, d) * x(n, d), weight += h(n, d);
      CHECK(std::abs(codes(k, d) - sum / weight) < 1e-12);
    }
  // Every round costs less than the last.
  const auto cost = [&](const matrix<double>& of) {
    const std::vector<index_t> near = plainly_nearest(x, h, of);
    double sum = 0;
    for (index_t n = 0; n < 200; ++n)
      sum += ((x.row(n) - of.row(near[as_size(n)])).array().square() * h.row(n).array()).sum();
    return sum;
  };
  double before = cost(start);
  for (int round = 0; round < 5; ++round) {
    CHECK(cost(codes) <= before);
    before = cost(codes);
    weighted_lloyd<double>(x, h, codes, 1);
  }
}

TEST_CASE("weighted_lloyd: empty codes stay or become zero, rows of NaN move nothing", "[quant][lloyd]") {
  matrix<double> x(3, 1), codes(2, 1);
  x << 1, 3, quiet_nan<double>();
  codes << 2, 100;
  matrix<double> kept = codes, zeroed = codes, untouched = codes;
  weighted_lloyd<double>(x, matrix<double>(), kept, 1);
  CHECK(kept == codes);
  weighted_lloyd<double>(x, matrix<double>(), zeroed, 1, unweighed::zero);
  CHECK(zeroed(0, 0) == 2);
  CHECK(zeroed(1, 0) == 0);
  weighted_lloyd<double>(x.topRows(0), matrix<double>(), untouched, 3, unweighed::zero);
  CHECK(untouched == codes);
  CHECK_THROWS_WITH(weighted_lloyd<double>(x, matrix<double>::Constant(3, 1, -1), kept, 1),
                    Catch::Matchers::Contains("number 0 of row 0 has the weight -1"));
}
