#include <sluice/codebook/nearest.hpp>

#include "support.hpp"

using namespace sluice;

namespace {

/// Rows of small whole numbers: every score is exact, whatever the order of additions, and many are equal.
template <typename Scalar>
matrix<Scalar> whole_numbers(index_t rows, index_t cols, std::uint64_t seed) {
  const random_source random(seed);
  matrix<Scalar> m(rows, cols);
  for (index_t i = 0; i < m.size(); ++i)
    m.data()[i] = static_cast<Scalar>(std::floor(5 * random.uniform(random_site::user_site, i)) - 2);
  return m;
}

template <typename Scalar>
std::vector<index_t> best_by_loop(const matrix<Scalar>& x, const matrix<Scalar>& keys,
                                  std::span<const Scalar> offsets) {
  std::vector<index_t> ids;
  for (index_t t = 0; t < x.rows(); ++t) {
    index_t best = no_code;
    double most = 0;
    for (index_t c = 0; c < keys.rows(); ++c) {
      double score = offsets.empty() ? 0 : static_cast<double>(offsets[as_size(c)]);
      for (index_t d = 0; d < x.cols(); ++d) score += static_cast<double>(x(t, d)) * static_cast<double>(keys(c, d));
      if (best != no_code && score <= most) continue;
      best = c;
      most = score;
    }
    ids.push_back(best);
  }
  return ids;
}

}  // namespace

TEMPLATE_TEST_CASE("nearest_codes: keys of others, keys of its own, with offsets and without", "[codebook][nearest]",
                   float, double) {
  using S = TestType;
  const index_t T = 70, C = 45, D = 11;
  const matrix<S> x = whole_numbers<S>(T, D, 1), keys = whole_numbers<S>(C, D, 2);
  code_search<S> search;
  nearest_scratch<S> scratch;
  matrix<index_t> ids(T, 2);
  std::vector<S> scores(as_size(T));

  search.set_keys({keys.data(), C, D});
  nearest_codes<S>(x, search, ids, nullptr, scratch);
  const auto plain = best_by_loop<S>(x, keys, {});
  for (index_t t = 0; t < T; ++t) CHECK(ids(t, 0) == plain[as_size(t)]);

  search.own_keys(C, D) = keys;
  const std::span<S> offsets = search.offsets(C);
  for (index_t c = 0; c < C; ++c) offsets[as_size(c)] = -keys.row(c).squaredNorm() / 2;
  const code_search<S> copy = search;
  search.own_keys(C, D).setZero();
  nearest_codes<S>(x, copy, ids, scores.data(), scratch);
  const auto nearest = best_by_loop<S>(x, keys, offsets);
  for (index_t t = 0; t < T; ++t) {
    CHECK(ids(t, 0) == nearest[as_size(t)]);
    CHECK(scores[as_size(t)] == x.row(t).dot(keys.row(ids(t, 0))) + offsets[as_size(ids(t, 0))]);
  }

  CHECK_THROWS_AS(nearest_codes<S>(x.leftCols(D - 1), copy, ids, nullptr, scratch), std::invalid_argument);
  CHECK_THROWS_AS(nearest_codes<S>(x, copy, ids.topRows(T - 1), nullptr, scratch), std::invalid_argument);
  search.offsets(C + 1);
  CHECK_THROWS_AS(nearest_codes<S>(x, search, ids, nullptr, scratch), std::invalid_argument);
}

TEMPLATE_TEST_CASE("nearest_codes: equal bits for any thread count, however tokens and codes are cut",
                   "[codebook][nearest][threads]", float, double) {
  using S = TestType;
  struct shape {
    index_t t, c, d;
  };
  const auto s = GENERATE(shape{150, 77, 19}, shape{5, 3000, 4}, shape{1, 1100, 3}, shape{1100, 40, 2});
  CAPTURE(s.t, s.c, s.d);
  matrix<S> x = test::random_matrix<S>(s.t, s.d, 3), keys = test::random_matrix<S>(s.c, s.d, 4);
  keys.row(s.c - 1) = keys.row(s.c / 2) = keys.row(1) = 10 * keys.row(0);  // equal codes in several parts
  if (s.t > 1) x(s.t - 1, 0) = quiet_nan<S>();
  code_search<S> search;
  search.set_keys({keys.data(), s.c, s.d});
  nearest_scratch<S> scratch;
  matrix<index_t> ids(s.t, 1), others(s.t, 1);
  matrix<S> scores(s.t, 1), other_scores(s.t, 1);
  nearest_codes<S>(x, search, ids, scores.data(), scratch);
  for (const int threads : {1, 2, 3, 8}) {
    test::shuffled_threads executor(threads);
    nearest_codes<S>(x, search, others, other_scores.data(), scratch, executor);
    CHECK(ids == others);
    CHECK(test::same_bits(scores, other_scores));
  }
}
