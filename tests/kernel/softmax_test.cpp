#include <sluice/kernel/softmax.hpp>

#include "../support.hpp"

#include <numeric>

using namespace sluice;

namespace {

template <typename Scalar>
constexpr Scalar inf = std::numeric_limits<Scalar>::infinity();

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

template <typename Scalar>
std::vector<Scalar> softmax(const std::vector<Scalar>& in) {
  std::vector<Scalar> out(in.size());
  kernel::softmax(in.data(), out.data(), static_cast<index_t>(in.size()));
  return out;
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
      const double kind = draws.uniform(random_site::choice_thinning, i);
      scores.push_back(kind < 0.1    ? quiet_nan<TestType>()
                       : kind < 0.15 ? inf<TestType>
                       : kind < 0.2  ? -inf<TestType>
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
  CHECK(top_k<TestType>({nan, -inf<TestType>, nan}, 3) == list{0, 1, 2});  // NaN counts as -infinity
  CHECK(top_k<TestType>({nan, nan}, 1) == list{0});
  CHECK(top_k<TestType>({1, inf<TestType>, 2, inf<TestType>}, 3) == list{1, 3, 2});
}

TEMPLATE_TEST_CASE("top_k: all of 512, and 257", "[kernel][top_k]", float, double) {
  for (const index_t size : {257, 512}) {
    const matrix<TestType> numbers = test::random_matrix<TestType>(1, size, 11);
    const std::vector<TestType> scores(numbers.data(), numbers.data() + size);
    CHECK(top_k(scores, size) == sorted_top_k(scores, size));
    CHECK(top_k(scores, 8) == sorted_top_k(scores, 8));
  }
}

TEMPLATE_TEST_CASE("arg_max: the first of the largest", "[kernel][ties]", float, double) {
  const TestType nan = quiet_nan<TestType>();
  const auto best = [](std::vector<TestType> v) { return kernel::arg_max(v.data(), static_cast<index_t>(v.size())); };
  CHECK(best({1, 7, 7}) == 1);
  CHECK(best({nan, -5}) == 1);
  CHECK(best({nan, nan}) == 0);
  CHECK(best({nan, -inf<TestType>}) == 0);
  CHECK(best({1, inf<TestType>}) == 1);
}

TEMPLATE_TEST_CASE("softmax: by hand, shifted, and in place", "[kernel][softmax]", float, double) {
  // Fixture of the router catalogue: logits 2, 1, 0, -1.
  const double expected[] = {0.643914, 0.236883, 0.087144, 0.032059};
  const auto p = softmax<TestType>({2, 1, 0, -1});
  for (std::size_t i = 0; i < 4; ++i)
    CHECK(std::abs(static_cast<double>(p[i]) - expected[i]) <
          5.1e-7 + 4 * static_cast<double>(std::numeric_limits<TestType>::epsilon()));
  CHECK(softmax<TestType>({1002, 1001, 1000, 999}) == p);  // exact: the differences to the maximum are the same
  std::vector<TestType> in_place{2, 1, 0, -1};
  kernel::softmax(in_place.data(), in_place.data(), 4);
  CHECK(in_place == p);
  CHECK(softmax<TestType>({-3}) == std::vector<TestType>{1});
  CHECK(softmax<TestType>({0, -10000}) == std::vector<TestType>{1, 0});
}

TEMPLATE_TEST_CASE("softmax: infinite scores share the mass, NaN spoils its row", "[kernel][softmax]", float, double) {
  const TestType half = TestType(0.5);
  CHECK(softmax<TestType>({1, inf<TestType>, inf<TestType>}) == std::vector<TestType>{0, half, half});
  CHECK(softmax<TestType>({1, -inf<TestType>, 1}) == std::vector<TestType>{half, 0, half});
  CHECK(softmax<TestType>({-inf<TestType>, -inf<TestType>}) == std::vector<TestType>{half, half});
  for (const std::size_t place : {0, 1, 2}) {
    std::vector<TestType> scores{1, 2, 3};
    scores[place] = quiet_nan<TestType>();
    for (const TestType& p : softmax(scores)) CHECK(is_nan(p));
  }
}

TEMPLATE_TEST_CASE("log_sum_exp: by hand, large numbers, infinities", "[kernel][softmax]", float, double) {
  const auto lse = [](std::vector<TestType> v) {
    return kernel::log_sum_exp(v.data(), static_cast<index_t>(v.size()));
  };
  const double eps = static_cast<double>(std::numeric_limits<TestType>::epsilon());
  CHECK(lse({0, 0, 0, 0}) == Approx(std::log(4.0)).epsilon(4 * eps));
  CHECK(lse({2, 1, 0, -1}) == Approx(2.4401896985611957).epsilon(8 * eps));
  CHECK(lse({1000, 1000}) == Approx(1000 + std::log(2.0)).epsilon(4 * eps));
  CHECK(lse({-7}) == -7);
  CHECK(lse({1, inf<TestType>, inf<TestType>}) == inf<TestType>);
}

TEMPLATE_TEST_CASE("exponentiate: gives the maximum and the sum of what it wrote", "[kernel][softmax]", float, double) {
  const std::vector<TestType> in{0, 3, 1};
  std::vector<TestType> out(3);
  const auto e = kernel::exponentiate(in.data(), out.data(), 3);
  CHECK(e.maximum == 3);
  CHECK(out[1] == 1);
  CHECK(e.sum == out[0] + out[1] + out[2]);
}
