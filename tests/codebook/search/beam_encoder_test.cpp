#include <sluice/codebook/search/beam_encoder.hpp>

#include "../../support.hpp"

using namespace sluice;

namespace {

template <typename Scalar>
std::vector<const_matrix_map<Scalar>> views_of(const std::vector<matrix<Scalar>>& tables) {
  std::vector<const_matrix_map<Scalar>> views;
  for (const auto& t : tables) views.emplace_back(t.data(), t.rows(), t.cols());
  return views;
}

double error_of(const matrix<double>& x, const matrix<double>& y) { return (x - y).squaredNorm(); }

}  // namespace

TEST_CASE("beam_encoder: a beam of 1 is greedy, one that holds everything is best", "[codebook][search]") {
  const index_t T = 20, D = 5;
  const std::vector<matrix<double>> tables{test::random_matrix<double>(6, D, 1), test::random_matrix<double>(4, D, 2),
                                           test::random_matrix<double>(5, D, 3)};
  const matrix<double> x = test::random_matrix<double>(T, D, 4);
  matrix<index_t> ids(T, 3);
  matrix<double> y(T, D);
  const beam_encoder<double> greedy(views_of(tables), 1), wide(views_of(tables), 3), all(views_of(tables), 24);
  beam_encoder<double>::workspace ws;
  greedy.encode(x, ids, ws);
  greedy.decode(ids, y);
  for (index_t t = 0; t < T; ++t) {
    matrix<double> rest = x.row(t);
    for (std::size_t m = 0; m < 3; ++m) {
      index_t best = 0;
      (tables[m].rowwise() - rest.row(0)).rowwise().squaredNorm().minCoeff(&best);
      CHECK(ids(t, static_cast<index_t>(m)) == best);
      rest -= tables[m].row(best);
    }
    CHECK(test::largest_difference(matrix<double>(x.row(t) - rest), matrix<double>(y.row(t))) < 1e-14);
  }
  matrix<double> better(T, D), best(T, D);
  wide.encode(x, ids, ws);
  wide.decode(ids, better);
  all.encode(x, ids, ws);
  all.decode(ids, best);
  CHECK(error_of(x, better) < error_of(x, y));
  CHECK(error_of(x, best) <= error_of(x, better));
  for (index_t t = 0; t < T; ++t) {
    double least = 1e300;
    for (index_t a = 0; a < 6; ++a)
      for (index_t b = 0; b < 4; ++b)
        for (index_t c = 0; c < 5; ++c)
          least = std::min(least, (x.row(t) - tables[0].row(a) - tables[1].row(b) - tables[2].row(c)).squaredNorm());
    CHECK((x.row(t) - best.row(t)).squaredNorm() < least + 1e-12);
  }
}

TEMPLATE_TEST_CASE("beam_encoder: equal rests, NaN, no vector, threads, options", "[codebook][search][ties][threads]",
                   float, double) {
  using S = TestType;
  matrix<S> first(4, 3), second = test::random_matrix<S>(3, 3, 2);
  first << 9, 9, 9, 1, 0, 0, 1, 0, 0, 0, 1, 0;
  second.row(2) = second.row(1);
  const std::vector<matrix<S>> tables{first, second}, unequal{first, matrix<S>::Zero(2, 4)};
  const beam_encoder<S> encoder(views_of<S>(tables), 2);
  typename beam_encoder<S>::workspace ws;
  matrix<S> x = test::random_matrix<S>(50, 3, 3), y(50, 3);
  x.row(0) = first.row(1) + second.row(1);
  x(1, 2) = quiet_nan<S>();
  matrix<index_t> ids(50, 2), others(50, 2);
  encoder.encode(x, ids, ws);
  CHECK(ids(0, 0) == 1);
  CHECK(ids(0, 1) == 1);
  CHECK(ids(1, 0) == no_code);
  CHECK(ids(1, 1) == no_code);
  encoder.decode(ids, y);
  CHECK(y.row(1).isZero(0));
  for (const int threads : {2, 8}) {
    test::shuffled_threads executor(threads);
    encoder.encode(x, others, ws, executor);
    CHECK(ids == others);
  }
  encoder.encode(x.topRows(0), ids.topRows(0), ws);
  CHECK_THROWS_AS(encoder.encode(x.leftCols(2), ids, ws), std::invalid_argument);
  ids(3, 1) = 3;
  CHECK_THROWS_AS(encoder.decode(ids, y), std::invalid_argument);
  CHECK_THROWS_AS(beam_encoder<S>(views_of<S>(tables), 0), std::invalid_argument);
  CHECK_THROWS_AS(beam_encoder<S>({}, 1), std::invalid_argument);
  CHECK_THROWS_AS(beam_encoder<S>(views_of<S>(unequal), 1), std::invalid_argument);
}
