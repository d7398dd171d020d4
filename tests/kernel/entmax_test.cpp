#include <sluice/kernel/entmax.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

/// By sorting, as published: the support is the longest one whose own threshold lies below its members.
std::vector<double> sorted_entmax(const std::vector<double>& scores) {
  std::vector<double> s = scores;
  const double maximum = *std::max_element(s.begin(), s.end());
  for (double& v : s) v = (v - maximum) / 2;
  std::vector<double> order = s;
  std::sort(order.rbegin(), order.rend());
  double sum = 0, squares = 0, tau = 0;
  for (std::size_t k = 1; k <= order.size(); ++k) {
    sum += order[k - 1], squares += order[k - 1] * order[k - 1];
    const double mean = sum / double(k), spread = squares - double(k) * mean * mean;
    const double own = mean - std::sqrt(std::max(0.0, (1 - spread) / double(k)));
    if (own <= order[k - 1]) tau = own;
  }
  for (double& v : s) v = v > tau ? (v - tau) * (v - tau) : 0;
  return s;
}

template <typename Scalar>
std::vector<Scalar> entmax_of(const std::vector<Scalar>& scores) {
  std::vector<Scalar> p(scores.size());
  kernel::entmax15(scores.data(), p.data(), static_cast<index_t>(scores.size()));
  return p;
}

}  // namespace

TEST_CASE("entmax15: numbers by hand", "[kernel][entmax]") {
  const auto p = entmax_of<double>({1, 0, -1});
  CHECK(p[0] == Approx(.830719).margin(5.1e-7));
  CHECK(p[1] == Approx(.169281).margin(5.1e-7));
  CHECK(p[2] == 0);
  CHECK(entmax_of<double>({3}) == std::vector<double>{1});
  CHECK(entmax_of<double>({2, 2, 2, 2}) == std::vector<double>(4, 0.25));
  CHECK(entmax_of<double>({5, -1e300}) == std::vector<double>{1, 0});
}

TEMPLATE_TEST_CASE("entmax15: as by sorting - at any length and spread", "[kernel][entmax]", float, double) {
  for (const index_t count : {1, 2, 3, 7, 8, 17, 64, 257})
    for (const double spread : {1e-6, 0.1, 1.0, 10.0, 1e4}) {
      const matrix<TestType> row = static_cast<TestType>(spread) *
                                   test::random_matrix<TestType>(1, count, 7 + static_cast<std::uint64_t>(count));
      const std::vector<TestType> scores(row.data(), row.data() + count);
      const auto p = entmax_of(scores);
      const auto expected = sorted_entmax({scores.begin(), scores.end()});
      double sum = 0;
      const double allowed = static_cast<double>(test::bound<TestType>(count, TestType(4)));
      for (std::size_t i = 0; i < p.size(); ++i) {
        // A share's error is that of its root, times two; far from the maximum scores themselves are coarse.
        CHECK(std::abs(static_cast<double>(p[i]) - expected[i]) <= allowed * std::max(1.0, 1e-4 * spread));
        sum += static_cast<double>(p[i]);
      }
      CHECK(std::abs(sum - 1) <= allowed);
    }
}

TEMPLATE_TEST_CASE("entmax15: scores of any size share one - what fills a vector gets none", "[kernel][entmax]", float,
                   double) {
  const TestType most = (std::numeric_limits<TestType>::max)();
  for (const TestType top : {TestType(1e9), TestType(1e18), most, -most})
    for (std::size_t count = 1; count <= 9; ++count) {
      std::vector<TestType> scores(count, -most);
      scores[0] = top;
      std::vector<TestType> expected(count, top == -most ? 1 / static_cast<TestType>(count) : TestType(0));
      if (top != -most) expected[0] = 1;
      const auto p = entmax_of(scores);
      for (std::size_t i = 0; i < count; ++i) CHECK(std::abs(p[i] - expected[i]) <= test::bound<TestType>(9));
    }
}

TEST_CASE("entmax15: ties and infinities and NaN", "[kernel][entmax][nan]") {
  const double infinity = std::numeric_limits<double>::infinity();
  const auto ties = entmax_of<double>({0.3, 1.1, 0.3, 1.1, -7});
  CHECK((ties[0] == ties[2] && ties[1] == ties[3] && ties[4] == 0 && ties[1] > ties[0]));
  CHECK(entmax_of<double>({1, infinity, 2, infinity}) == std::vector<double>{0, 0.5, 0, 0.5});
  const auto finite = entmax_of<double>({1, -infinity, 1});
  CHECK((finite[0] == finite[2] && finite[1] == 0));
  CHECK(finite[0] == Approx(0.5).epsilon(1e-15));
  CHECK(entmax_of<double>({-infinity, -infinity}) == std::vector<double>{0.5, 0.5});
  for (const double v : entmax_of<double>({1, quiet_nan<double>(), 2})) CHECK(is_nan(v));
}

TEST_CASE("entmax15: gradients equal central differences", "[kernel][entmax][gradient]") {
  const std::vector<double> scores{0.2, -0.4, 0.9, 0.1, -3}, dp{1, -2, 0.5, 3, 7};
  const auto p = entmax_of(scores);
  std::vector<double> ds(5, 0.25);
  kernel::add_entmax15_gradient(p.data(), dp.data(), 5, ds.data());
  for (std::size_t i = 0; i < 5; ++i) {
    const auto value = [&](double step) {
      auto moved = scores;
      moved[i] += step;
      const auto q = entmax_of(moved);
      double sum = 0;
      for (std::size_t j = 0; j < 5; ++j) sum += q[j] * dp[j];
      return sum;
    };
    CHECK(ds[i] - 0.25 == Approx((value(1e-6) - value(-1e-6)) / 2e-6).margin(1e-8));
  }
}
