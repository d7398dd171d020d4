#include <sluice/codebook/code_sums.hpp>

#include "support.hpp"

using namespace sluice;

namespace {

std::vector<index_t> ids_with_gaps(index_t tokens, index_t codes, index_t stride, std::uint64_t seed) {
  const random_source random(seed);
  std::vector<index_t> ids(as_size(tokens * stride), -7);
  for (index_t t = 0; t < tokens; ++t)
    ids[as_size(t * stride)] =
        static_cast<index_t>(std::floor(static_cast<double>(codes + 1) * random.uniform(random_site::user_site, t))) -
        1;
  return ids;
}

}  // namespace

TEMPLATE_TEST_CASE("sum_by_code: counts and sums, in the order of the tokens", "[codebook][code_sums]", float, double) {
  using S = TestType;
  struct shape {
    index_t t, c, d, stride;
  };
  const auto s = GENERATE(shape{0, 3, 2, 1}, shape{1, 1, 1, 1}, shape{50, 7, 5, 3}, shape{9, 40, 33, 1});
  CAPTURE(s.t, s.c, s.d);
  const matrix<S> x = test::random_matrix<S>(s.t, s.d, 1);
  const auto ids = ids_with_gaps(s.t, s.c, s.stride, 2);
  std::vector<S> weights;
  for (index_t t = 0; t < s.t; ++t) weights.push_back(static_cast<S>(t % 4) / 2);

  code_sums<S> plain, weighed;
  sum_by_code<S>(x, ids.data(), s.c, plain, {}, s.stride);
  sum_by_code<S>(x, ids.data(), s.c, weighed, {}, s.stride, weights.data());
  REQUIRE(plain.counts.size() == s.c);
  for (index_t c = 0; c < s.c; ++c) {
    index_t count = 0;
    S weight = 0;
    matrix<S> sum = matrix<S>::Zero(2, s.d);
    for (index_t t = 0; t < s.t; ++t) {
      if (ids[as_size(t * s.stride)] != c) continue;
      ++count;
      weight += weights[as_size(t)];
      sum.row(0) += x.row(t);
      for (index_t d = 0; d < s.d; ++d) sum(1, d) = std::fma(weights[as_size(t)], x(t, d), sum(1, d));
    }
    CHECK(plain.counts[c] == count);
    CHECK(plain.weights[c] == static_cast<S>(count));
    CHECK(weighed.counts[c] == count);
    CHECK(weighed.weights[c] == weight);
    CHECK(test::same_bits(matrix<S>(sum.row(0)), matrix<S>(plain.sums.map().row(c))));
    CHECK(test::largest_difference(matrix<S>(sum.row(1)), matrix<S>(weighed.sums.map().row(c))) <=
          test::bound<S>(count, 4));
  }
}

TEST_CASE("sum_by_code: equal bits for any thread count, whoever has the tokens", "[codebook][code_sums][threads]") {
  const matrix<float> x = test::random_matrix<float>(200, 37, 3);
  auto ids = ids_with_gaps(200, 23, 1, 4);
  const bool one_code = GENERATE(false, true);
  if (one_code) std::fill(ids.begin(), ids.end(), 11);
  code_sums<float> serial, other;
  sum_by_code<float>(x, ids.data(), 23, serial);
  for (const int threads : {1, 2, 3, 8}) {
    test::shuffled_threads executor(threads);
    sum_by_code<float>(x, ids.data(), 23, other, executor);
    CHECK(serial.counts == other.counts);
    CHECK(test::same_bits(serial.sums.map(), other.sums.map()));
  }
}

TEST_CASE("sum_by_code: numbers that are no code are refused", "[codebook][code_sums]") {
  const matrix<double> x = test::random_matrix<double>(2, 3, 5);
  code_sums<double> sums;
  const index_t high[] = {0, 4}, low[] = {-2, 0};
  CHECK_THROWS_AS(sum_by_code<double>(x, high, 4, sums), std::invalid_argument);
  CHECK_THROWS_AS(sum_by_code<double>(x, low, 4, sums), std::invalid_argument);
}
