#include <sluice/kernel/softmax.hpp>

#include "../guarded.hpp"
#include "../support.hpp"
#include "special_rows.hpp"

using namespace sluice;

namespace {

template <typename Scalar>
std::vector<Scalar> softmax(const std::vector<Scalar>& in) {
  std::vector<Scalar> out(in.size());
  kernel::softmax(in.data(), out.data(), static_cast<index_t>(in.size()));
  return out;
}

}  // namespace

TEMPLATE_TEST_CASE("softmax: by hand, shifted, and in place", "[kernel][softmax]", float, double) {
  // Fixture of the router catalogue: logits 2, 1, 0, -1.
  const double expected[] = {0.643914, 0.236883, 0.087144, 0.032059};
  const auto p = softmax<TestType>({2, 1, 0, -1});
  for (std::size_t i = 0; i < 4; ++i) CHECK(std::abs(static_cast<double>(p[i]) - expected[i]) < 5.1e-7 + 4 * static_cast<double>(std::numeric_limits<TestType>::epsilon()));
  CHECK(softmax<TestType>({1002, 1001, 1000, 999}) == p);  // exact: the differences to the maximum are the same
  std::vector<TestType> in_place{2, 1, 0, -1};
  kernel::softmax(in_place.data(), in_place.data(), 4);
  CHECK(in_place == p);
  CHECK(softmax<TestType>({-3}) == std::vector<TestType>{1});
  CHECK(softmax<TestType>({0, -10000}) == std::vector<TestType>{1, 0});
}

TEMPLATE_TEST_CASE("softmax: infinite scores share the mass, NaN spoils its row", "[kernel][softmax]", float, double) {
  const TestType half = TestType(0.5);
  CHECK(softmax<TestType>({1, test::inf<TestType>, test::inf<TestType>}) == std::vector<TestType>{0, half, half});
  CHECK(softmax<TestType>({1, -test::inf<TestType>, 1}) == std::vector<TestType>{half, 0, half});
  CHECK(softmax<TestType>({-test::inf<TestType>, -test::inf<TestType>}) == std::vector<TestType>{half, half});
  for (const std::size_t place : {0, 1, 2}) {
    std::vector<TestType> scores{1, 2, 3};
    scores[place] = quiet_nan<TestType>();
    for (const TestType& p : softmax(scores)) CHECK(is_nan(p));
  }
}

TEMPLATE_TEST_CASE("log_sum_exp: by hand, large numbers, infinities", "[kernel][softmax]", float, double) {
  const auto lse = [](std::vector<TestType> v) { return kernel::log_sum_exp(v.data(), static_cast<index_t>(v.size())); };
  const double eps = static_cast<double>(std::numeric_limits<TestType>::epsilon());
  CHECK(lse({0, 0, 0, 0}) == Approx(std::log(4.0)).epsilon(4 * eps));
  CHECK(lse({2, 1, 0, -1}) == Approx(2.4401896985611957).epsilon(8 * eps));
  CHECK(lse({1000, 1000}) == Approx(1000 + std::log(2.0)).epsilon(4 * eps));
  CHECK(lse({-7}) == -7);
  CHECK(lse({1, test::inf<TestType>, test::inf<TestType>}) == test::inf<TestType>);
}

TEMPLATE_TEST_CASE("exponentiate: gives the maximum and the sum of what it wrote", "[kernel][softmax]", float, double) {
  const std::vector<TestType> in{0, 3, 1};
  std::vector<TestType> out(3);
  const auto e = kernel::exponentiate(in.data(), out.data(), 3);
  CHECK(e.maximum == 3);
  CHECK(out[1] == 1);
  // Lanes are added in an order of their own.
  CHECK(std::abs(e.sum - (out[0] + out[1] + out[2])) <= test::bound<TestType>(3));
}

TEMPLATE_TEST_CASE("softmax: every length to 70 like the plain loop, beside forbidden memory", "[kernel][softmax]",
                   float, double) {
  const auto where = GENERATE(test::guard::before, test::guard::behind);
  const bool special = GENERATE(false, true);
  const double eps = static_cast<double>(std::numeric_limits<TestType>::epsilon());
  for (index_t count = 1; count <= 70; ++count) {
    test::guarded_array<TestType> in(count, where), out(count, where);
    if (special)
      test::fill_with_special(in.data(), count, static_cast<std::uint64_t>(count));
    else
      for (index_t i = 0; i < count; ++i)
        in.data()[i] = static_cast<TestType>(8 * random_source(3).normal(random_site::user_site, 100 * count + i));
    bool has_nan = false;
    index_t best = 0;
    for (index_t i = 0; i < count; ++i) {
      has_nan |= is_nan(in.data()[i]);
      if (order_key(in.data()[i]) > order_key(in.data()[best])) best = i;
    }
    const TestType maximum = in.data()[best];
    std::vector<double> wanted(static_cast<std::size_t>(count));
    double sum = 0;
    for (index_t i = 0; i < count && !has_nan; ++i) {
      const bool largest = order_key(in.data()[i]) == order_key(maximum);
      const bool none =
          order_key(in.data()[i]) == order_key(-test::inf<TestType>) || order_key(maximum) == order_key(test::inf<TestType>);
      wanted[static_cast<std::size_t>(i)] =
          largest ? 1
          : none  ? 0
                  : std::exp(static_cast<double>(in.data()[i]) - static_cast<double>(maximum));
      sum += wanted[static_cast<std::size_t>(i)];
    }
    kernel::softmax(in.data(), out.data(), count);
    for (index_t i = 0; i < count; ++i) {
      if (has_nan) {
        REQUIRE(is_nan(out.data()[i]));
        continue;
      }
      const double p = wanted[static_cast<std::size_t>(i)] / sum;
      // Relative, with the rounding of a difference of up to 60 before exp; what is below the normal numbers may be 0.
      const double bound = (70 + 60) * eps * p + static_cast<double>(std::numeric_limits<TestType>::min());
      REQUIRE(std::abs(static_cast<double>(out.data()[i]) - p) <= bound);
    }
    kernel::softmax(in.data(), in.data(), count);
    REQUIRE(std::memcmp(in.data(), out.data(), static_cast<std::size_t>(count) * sizeof(TestType)) == 0);
  }
}

TEMPLATE_TEST_CASE("softmax: a row has the same bits at every address", "[kernel][softmax]", float, double) {
  for (const index_t count : {1, 7, 16, 31, 64, 70}) {
    std::vector<TestType> memory(200), first(static_cast<std::size_t>(count)), other(static_cast<std::size_t>(count));
    for (index_t shift = 0; shift < 17; ++shift) {
      TestType* row = memory.data() + shift;
      for (index_t i = 0; i < count; ++i)
        row[i] = static_cast<TestType>(random_source(5).normal(random_site::user_site, i));
      kernel::softmax(row, shift == 0 ? first.data() : other.data(), count);
      if (shift > 0) REQUIRE(std::memcmp(first.data(), other.data(), first.size() * sizeof(TestType)) == 0);
    }
  }
}
