#include <sluice/io/element_conversion.hpp>

#include "support.hpp"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

using namespace sluice::detail;

TEST_CASE("float_from_half: all 65536 halves equal the sum that defines them", "[io]") {
  int wrong = 0;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto got = std::bit_cast<std::uint32_t>(float_from_half(static_cast<std::uint16_t>(bits)));
    const auto exponent = static_cast<int>(bits >> 10 & 0x1F);
    const auto fraction = static_cast<int>(bits & 0x3FF);
    const std::uint32_t sign = bits >> 15;
    if (exponent == 31) {  // infinity, or NaN whose fraction stays in front
      wrong += got != ((sign << 31) | 0x7F800000U | ((bits & 0x3FF) << 13));
      continue;
    }
    const double magnitude =
        exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 15 - 10);
    const auto expected = static_cast<float>(magnitude);  // exact: 11 bits in 24
    wrong += got != ((sign << 31) | std::bit_cast<std::uint32_t>(expected));
  }
  CHECK(wrong == 0);
}

TEST_CASE("float_from_bfloat16: known values", "[io]") {
  CHECK(float_from_bfloat16(0x3F80) == 1.0F);
  CHECK(float_from_bfloat16(0xC049) == -3.140625F);
  CHECK(std::bit_cast<std::uint32_t>(float_from_bfloat16(0x0001)) == 0x00010000U);  // subnormal
  CHECK(std::bit_cast<std::uint32_t>(float_from_bfloat16(0xFF80)) == 0xFF800000U);  // -infinity
}

TEST_CASE("exceeds_float: true from half a unit above the largest float on, false for infinities and NaN", "[io]") {
  const auto from_bits = [](std::uint64_t bits) { return std::bit_cast<double>(bits); };
  const double largest = std::numeric_limits<float>::max();
  const double first_too_large = 0x1.ffffffp127;
  const double last_that_fits = from_bits(std::bit_cast<std::uint64_t>(first_too_large) - 1);
  for (const double sign : {1.0, -1.0}) {
    CHECK(!exceeds_float(sign * largest));
    CHECK(!exceeds_float(sign * last_that_fits));
    CHECK(static_cast<float>(sign * last_that_fits) == static_cast<float>(sign * largest));
    CHECK(exceeds_float(sign * first_too_large));
    CHECK(exceeds_float(sign * std::numeric_limits<double>::max()));
    CHECK(!exceeds_float(sign * 0.0));
  }
  CHECK(!exceeds_float(from_bits(0x7FF0000000000000)));
  CHECK(!exceeds_float(from_bits(0xFFF0000000000000)));
  CHECK(!exceeds_float(from_bits(0x7FF8000000000000)));
  CHECK(!exceeds_float(from_bits(0xFFF0000000000001)));
}
