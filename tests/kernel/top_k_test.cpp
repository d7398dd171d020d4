#include <sluice/kernel/top_k.hpp>

#include "../guarded.hpp"
#include "../support.hpp"
#include "special_rows.hpp"

#include <numeric>

using namespace sluice;

namespace {

/// The k best positions by a stable sort on the same order: NaN as low as -infinity, equal scores by position.
template <typename Scalar>
std::vector<index_t> sorted_top_k(const std::vector<Scalar>& scores, index_t k) {
  std::vector<index_t> ids(scores.size());
  std::iota(ids.begin(), ids.end(), index_t(0));
  std::stable_sort(ids.begin(), ids.end(), [&](index_t a, index_t b) {
    return order_key(scores[static_cast<std::size_t>(a)]) > order_key(scores[static_cast<std::size_t>(b)]);
  });
  ids.resize(static_cast<std::size_t>(k));
  return ids;
}

template <typename Scalar>
std::vector<index_t> top_k(const std::vector<Scalar>& scores, index_t k) {
  std::vector<index_t> ids(static_cast<std::size_t>(k), -7);
  kernel::top_k(scores.data(), static_cast<index_t>(scores.size()), k, ids.data());
  return ids;
}

}  // namespace

TEMPLATE_TEST_CASE("top_k: equals a stable sort for random scores with ties, NaN and infinities",
                   "[kernel][top_k][ties]", float, double) {
  const random_source random(9);
  for (std::uint64_t round = 0; round < 200; ++round) {
    const random_source draws = random.at_step(round);
    const auto size = 1 + static_cast<index_t>(draws.uniform(random_site::user_site, -1) * 40);
    std::vector<TestType> scores;
    for (index_t i = 0; i < size; ++i) {
      // Few distinct values, so that ties are common; a tenth NaN, a tenth infinite.
      const double u = draws.uniform(random_site::user_site, i);
      const double kind = draws.uniform(random_site("kind"), i);
      scores.push_back(kind < 0.1    ? quiet_nan<TestType>()
                       : kind < 0.15 ? test::inf<TestType>
                       : kind < 0.2  ? -test::inf<TestType>
                                     : static_cast<TestType>(std::floor(u * 5) - 2));
    }
    for (index_t k = 0; k <= size; ++k) REQUIRE(top_k(scores, k) == sorted_top_k(scores, k));
  }
}

TEMPLATE_TEST_CASE("top_k: by hand", "[kernel][top_k][ties]", float, double) {
  using list = std::vector<index_t>;
  const TestType nan = quiet_nan<TestType>();
  CHECK(top_k<TestType>({1, 3, 2}, 2) == list{1, 2});
  CHECK(top_k<TestType>({5, 5, 5, 5}, 3) == list{0, 1, 2});
  CHECK(top_k<TestType>({0, TestType(-0.0), 0}, 2) == list{0, 1});
  CHECK(top_k<TestType>({nan, 1, nan}, 3) == list{1, 0, 2});
  CHECK(top_k<TestType>({nan, -test::inf<TestType>, nan}, 3) == list{0, 1, 2});  // NaN counts as -infinity
  CHECK(top_k<TestType>({nan, nan}, 1) == list{0});
  CHECK(top_k<TestType>({1, test::inf<TestType>, 2, test::inf<TestType>}, 3) == list{1, 3, 2});
}

TEMPLATE_TEST_CASE("top_k: all of 512, and 257", "[kernel][top_k]", float, double) {
  for (const index_t size : {257, 512}) {
    const matrix<TestType> numbers = test::random_matrix<TestType>(1, size, 11);
    const std::vector<TestType> scores(numbers.data(), numbers.data() + size);
    CHECK(top_k(scores, size) == sorted_top_k(scores, size));
    CHECK(top_k(scores, 8) == sorted_top_k(scores, 8));
  }
}

TEMPLATE_TEST_CASE("top_k: every length to 70 and every k, beside forbidden memory", "[kernel][top_k][ties]", float,
                   double) {
  const auto where = GENERATE(test::guard::before, test::guard::behind);
  for (const std::uint64_t seed : {1, 2, 3}) {
    for (index_t count = 1; count <= 70; ++count) {
      test::guarded_array<TestType> scores(count, where);
      test::fill_with_special(scores.data(), count, seed);
      const std::vector<TestType> copy(scores.data(), scores.data() + count);
      for (index_t k = 1; k <= count; ++k) {
        test::guarded_array<index_t> ids(k, where, -7);
        kernel::top_k(scores.data(), count, k, ids.data());
        REQUIRE(std::vector<index_t>(ids.data(), ids.data() + k) == sorted_top_k(copy, k));
      }
    }
  }
}

TEMPLATE_TEST_CASE("top_k: orders that give the bound nothing to hold on to", "[kernel][top_k]", float, double) {
  // All large scores in the same lanes, ascending, descending, one value, only NaN, only -infinity.
  for (const index_t count : {17, 64, 100, 256}) {
    std::vector<std::vector<TestType>> rows(7, std::vector<TestType>(static_cast<std::size_t>(count)));
    for (index_t i = 0; i < count; ++i) {
      const auto at = static_cast<std::size_t>(i);
      rows[0][at] = static_cast<TestType>(i % 16 < 3 ? 1000 + i : -i);
      rows[1][at] = static_cast<TestType>(i);
      rows[2][at] = static_cast<TestType>(-i);
      rows[3][at] = TestType(-0.25);
      rows[4][at] = quiet_nan<TestType>();
      rows[5][at] = i % 3 == 0 ? -test::inf<TestType> : quiet_nan<TestType>();
      rows[6][at] = i % 5 == 0 ? test::inf<TestType> : static_cast<TestType>(i % 2 == 0 ? 0.0 : -0.0);
    }
    for (const auto& row : rows)
      for (const index_t k : {1, 2, 8, 15, 16, 17}) REQUIRE(top_k(row, k) == sorted_top_k(row, k));
  }
}
