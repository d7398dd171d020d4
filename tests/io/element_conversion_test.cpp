#include <sluice/io/element_conversion.hpp>

#include "support.hpp"

#include <bit>
#include <cstdint>
#include <limits>

using namespace sluice::detail;

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
