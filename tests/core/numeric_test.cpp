#include <sluice/core/numeric.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

template <typename Scalar>
Scalar from_bits(ordered_bits<Scalar> bits) {
  Scalar value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

/// NaN of both signs, quiet and signalling, with small and large payloads.
template <typename Scalar>
std::vector<Scalar> nans() {
  using bits = ordered_bits<Scalar>;
  constexpr bits exponent = sizeof(Scalar) == 4 ? bits(0x7f800000) : bits(0x7ff0000000000000);
  constexpr bits sign = std::numeric_limits<bits>::min();
  return {from_bits<Scalar>(exponent | 1), from_bits<Scalar>(std::numeric_limits<bits>::max()),
          from_bits<Scalar>(sign | exponent | 1), from_bits<Scalar>(bits(-1)), quiet_nan<Scalar>()};
}

template <typename Scalar>
Scalar infinity() {
  return from_bits<Scalar>(sizeof(Scalar) == 4 ? ordered_bits<Scalar>(0x7f800000)
                                               : ordered_bits<Scalar>(0x7ff0000000000000));
}

}  // namespace

// These cases also run under -ffast-math, where the compiler may assume that NaN does not exist.

TEMPLATE_TEST_CASE("is_nan: true for NaN of every kind and for nothing else", "[core][numeric]", float, double) {
  for (const TestType& value : nans<TestType>()) CHECK(is_nan(value));
  const TestType largest = std::numeric_limits<TestType>::max();
  for (const TestType& value :
       {TestType(0), -TestType(0), TestType(1), -largest, largest, std::numeric_limits<TestType>::denorm_min()})
    CHECK_FALSE(is_nan(value));
  CHECK_FALSE(is_nan(infinity<TestType>()));
  const TestType negative =
      from_bits<TestType>(detail::bits_of(infinity<TestType>()) | std::numeric_limits<ordered_bits<TestType>>::min());
  CHECK_FALSE(is_nan(negative));
}

TEMPLATE_TEST_CASE("any_nan: finds one NaN at any place", "[core][numeric]", float, double) {
  for (const index_t size : {1, 2, 7, 33}) {
    std::vector<TestType> values(static_cast<std::size_t>(size), TestType(1));
    CHECK_FALSE(any_nan(values.data(), size));
    for (std::size_t i = 0; i < values.size(); ++i) {
      for (const TestType& nan : nans<TestType>()) {
        std::memcpy(&values[i], &nan, sizeof nan);
        CHECK(any_nan(values.data(), size));
      }
      values[i] = -infinity<TestType>();
      CHECK_FALSE(any_nan(values.data(), size));
      values[i] = infinity<TestType>();
      CHECK_FALSE(any_nan(values.data(), size));
      values[i] = TestType(1);
    }
  }
  CHECK_FALSE(any_nan(static_cast<const TestType*>(nullptr), 0));
}

TEMPLATE_TEST_CASE("order_key: orders like the numbers, NaN lowest, zeros equal", "[core][numeric]", float, double) {
  const TestType largest = std::numeric_limits<TestType>::max();
  const TestType denormal = std::numeric_limits<TestType>::denorm_min();
  const std::vector<TestType> ascending{-largest,
                                        TestType(-1),
                                        -std::numeric_limits<TestType>::min(),
                                        -denormal,
                                        TestType(0),
                                        denormal,
                                        std::numeric_limits<TestType>::min(),
                                        TestType(0.5),
                                        TestType(1),
                                        TestType(1) + std::numeric_limits<TestType>::epsilon(),
                                        largest,
                                        infinity<TestType>()};
  for (std::size_t i = 1; i < ascending.size(); ++i) CHECK(order_key(ascending[i - 1]) < order_key(ascending[i]));
  CHECK(order_key(TestType(0)) == order_key(-TestType(0)));
  const TestType lowest =
      from_bits<TestType>(detail::bits_of(infinity<TestType>()) | std::numeric_limits<ordered_bits<TestType>>::min());
  CHECK(order_key(lowest) < order_key(-largest));
  for (const TestType& value : nans<TestType>()) CHECK(order_key(value) == order_key(lowest));
}

TEST_CASE("largest_first: the lower of equals, zeros equal, NaN last together with -infinity", "[core][numeric]") {
  const std::vector<double> values{quiet_nan<double>(), -0.0, infinity<double>(), 2, 0.0, 2, -infinity<double>()};
  std::vector<index_t> order{6, 5, 4, 3, 2, 1, 0};
  std::sort(order.begin(), order.end(), largest_first{values.data()});
  CHECK(order == std::vector<index_t>{2, 3, 5, 1, 4, 0, 6});
}

TEMPLATE_TEST_CASE("is_at_least, is_above, is_between: no option is NaN or infinite", "[core][numeric]", float,
                   double) {
  using S = TestType;
  const S infinity = std::numeric_limits<S>::infinity();
  for (const S bad : {quiet_nan<S>(), -quiet_nan<S>(), infinity, -infinity}) {
    CHECK_FALSE(is_at_least(bad, S(0)));
    CHECK_FALSE(is_above(bad, S(0)));
    CHECK_FALSE(is_between(bad, S(0), infinity));
    CHECK_FALSE(is_finite(bad));
  }
  CHECK((is_at_least(S(0), S(0)) && !is_above(S(0), S(0)) && is_above(std::numeric_limits<S>::denorm_min(), S(0))));
  CHECK((is_at_least((std::numeric_limits<S>::max)(), S(0)) && is_between(S(1), S(0), S(1))));
}
