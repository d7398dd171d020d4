#include <sluice/kernel/order.hpp>

#include "../guarded.hpp"
#include "../support.hpp"
#include "special_rows.hpp"

using namespace sluice;

TEMPLATE_TEST_CASE("arg_max: the first of the largest", "[kernel][ties]", float, double) {
  const TestType nan = quiet_nan<TestType>();
  const auto best = [](std::vector<TestType> v) { return kernel::arg_max(v.data(), static_cast<index_t>(v.size())); };
  CHECK(best({1, 7, 7}) == 1);
  CHECK(best({nan, -5}) == 1);
  CHECK(best({nan, nan}) == 0);
  CHECK(best({nan, -test::inf<TestType>}) == 0);
  CHECK(best({1, test::inf<TestType>}) == 1);
}

TEMPLATE_TEST_CASE("order_keys: every lane like order_key, and back to the number", "[kernel][order]", float, double) {
  constexpr index_t width = kernel::simd_width<TestType>;
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    std::vector<TestType> numbers(static_cast<std::size_t>(width));
    test::fill_with_special(numbers.data(), width, seed);
    std::vector<ordered_bits<TestType>> keys(static_cast<std::size_t>(width));
    kernel::store<ordered_bits<TestType>>(keys.data(), kernel::order_keys<TestType>(kernel::load(numbers.data())));
    const std::uint64_t nan = kernel::lane_bits(kernel::nan_lanes<TestType>(kernel::load(numbers.data())));
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      CHECK(keys[i] == order_key(numbers[i]));
      CHECK((nan >> i & 1) == (is_nan(numbers[i]) ? 1u : 0u));
      const TestType back = kernel::number_of_key<TestType>(keys[i]);
      CHECK(order_key(back) == keys[i]);
      CHECK_FALSE(is_nan(back));
    }
    CHECK(nan >> width == 0);
    CHECK(kernel::largest_lane<ordered_bits<TestType>>(kernel::load(keys.data())) ==
          *std::max_element(keys.begin(), keys.end()));
  }
}

TEMPLATE_TEST_CASE("arg_max: every length to 70, beside forbidden memory", "[kernel][order][ties]", float, double) {
  const auto where = GENERATE(test::guard::before, test::guard::behind);
  for (const std::uint64_t seed : {1, 2, 3}) {
    for (index_t count = 1; count <= 70; ++count) {
      test::guarded_array<TestType> row(count, where);
      test::fill_with_special(row.data(), count, seed);
      index_t best = 0;
      for (index_t i = 1; i < count; ++i)
        if (order_key(row.data()[i]) > order_key(row.data()[best])) best = i;
      REQUIRE(kernel::arg_max(row.data(), count) == best);
      REQUIRE(kernel::largest_key(row.data(), count) == order_key(row.data()[best]));
    }
  }
}

TEMPLATE_TEST_CASE("parts of vectors: neither read nor written past their count", "[kernel][simd]", float, double) {
  constexpr index_t width = kernel::simd_width<TestType>;
  const auto where = GENERATE(test::guard::before, test::guard::behind);
  for (index_t count = 1; count <= width; ++count) {
    test::guarded_array<TestType> from(count, where), to(count, where);
    for (index_t i = 0; i < count; ++i) from.data()[i] = static_cast<TestType>(i + 1);
    const auto v = kernel::load_part(from.data(), count, TestType(-5));
    TestType lanes[width];
    kernel::store<TestType>(lanes, v);
    for (index_t i = 0; i < width; ++i) CHECK(lanes[i] == (i < count ? static_cast<TestType>(i + 1) : TestType(-5)));
    kernel::store_part<TestType>(to.data(), v, count);
    for (index_t i = 0; i < count; ++i) CHECK(to.data()[i] == lanes[i]);
  }
}
