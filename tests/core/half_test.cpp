#include <sluice/core/half.hpp>

#include "support.hpp"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

using namespace sluice;

namespace {

std::uint32_t bits_of(float value) { return std::bit_cast<std::uint32_t>(value); }
/// 255 for infinity and NaN, which -ffast-math would not tell from numbers.
std::uint32_t exponent_of(float value) { return bits_of(value) >> 23 & 0xFF; }

/// The nearest of all finite halves, ties to the even one, found by looking at them all around a guess.
template <typename Half>
void check_rounding(float value, Half got) {
  const float back = to_float(got);
  const Half below{static_cast<std::uint16_t>(got.bits - 1)}, above{static_cast<std::uint16_t>(got.bits + 1)};
  const double error = std::abs(static_cast<double>(back) - static_cast<double>(value));
  for (const Half other : {below, above}) {
    const float candidate = to_float(other);
    if (exponent_of(candidate) == 255 || (candidate < 0) != (back < 0)) continue;
    const double its = std::abs(static_cast<double>(candidate) - static_cast<double>(value));
    CHECK(error <= its);
    if (error == its) CHECK((got.bits & 1) == 0);
  }
}

}  // namespace

TEST_CASE("float16: all 65536 values equal the sum that defines them", "[core]") {
  int wrong = 0;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const std::uint32_t got = bits_of(to_float(float16{static_cast<std::uint16_t>(bits)}));
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
    wrong += got != ((sign << 31) | bits_of(expected));
  }
  CHECK(wrong == 0);
}

TEST_CASE("sixteen-bit numbers: from double in one rounding, where a float between would make two", "[core]") {
  // Just above and below the middle of two neighbours: a float rounds both to the middle, and that to the even one.
  for (const double sign : {1.0, -1.0})
    for (int exponent = -30; exponent <= 15; ++exponent)
      for (int fraction = 0; fraction < 8; ++fraction) {
        const double half_step = std::ldexp(1.0, std::max(exponent, -14) - 11);
        const double middle = std::ldexp(1.0 + fraction / 1024.0, exponent);
        const double start = std::floor(middle / (2 * half_step)) * 2 * half_step;
        const float16 below = round_to<float16>(static_cast<float>(sign * start));
        const float16 above = round_to<float16>(static_cast<float>(sign * (start + 2 * half_step)));
        const double tiny = half_step * 0x1p-40;
        CAPTURE(sign, exponent, fraction);
        CHECK(round_to<float16>(sign * (start + half_step - tiny)) == below);
        CHECK(round_to<float16>(sign * (start + half_step + tiny)) == above);
        CHECK(round_to<float16>(sign * (start + half_step)) == ((below.bits & 1) == 0 ? below : above));
      }
  CHECK(round_to<bfloat16>(1.0 + 0x1p-8 + 0x1p-40).bits == 0x3F81);
  CHECK(round_to<bfloat16>(1.0 + 0x1p-8).bits == 0x3F80);
  CHECK(round_to<bfloat16>(1e300).bits == 0x7F80);
  CHECK(round_to<float16>(-65519.999).bits == 0xFBFF);
  CHECK((round_to<float16>(std::numeric_limits<double>::quiet_NaN()).bits & 0x7FFF) > 0x7C00);
}

TEST_CASE("bfloat16: known values", "[core]") {
  CHECK(to_float(bfloat16{0x3F80}) == 1.0F);
  CHECK(to_float(bfloat16{0xC049}) == -3.140625F);
  CHECK(bits_of(to_float(bfloat16{0x0001})) == 0x00010000U);  // subnormal
  CHECK(bits_of(to_float(bfloat16{0xFF80})) == 0xFF800000U);  // -infinity
}

TEST_CASE("half types: every value comes back from float", "[core]") {
  int wrong = 0;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float16 half{static_cast<std::uint16_t>(bits)};
    const bfloat16 brain{static_cast<std::uint16_t>(bits)};
    if ((bits & 0x7C00U) != 0x7C00U || (bits & 0x3FFU) == 0) wrong += round_to<float16>(to_float(half)) != half;
    if ((bits & 0x7F80U) != 0x7F80U || (bits & 0x7FU) == 0) wrong += round_to<bfloat16>(to_float(brain)) != brain;
  }
  CHECK(wrong == 0);
}

TEST_CASE("half types: round to nearest, ties to even", "[core]") {
  for (std::uint32_t i = 0; i < 20000; ++i) {
    const std::uint32_t bits = i * 2654435761U;  // spread over all exponents
    const float value = std::bit_cast<float>(bits & 0x7FFFFFFFU);
    // Not the smallest ones: arithmetic of the test on subnormal floats gives zero under -ffast-math.
    if (exponent_of(value) == 255 || exponent_of(value) < 8) continue;
    CAPTURE(value);
    if (value < 3e38F) check_rounding(value, round_to<bfloat16>(value));
    if (value < 65519.0F) check_rounding(value, round_to<float16>(value));
  }
  CHECK(round_to<float16>(65520.0F).bits == 0x7C00);
  CHECK(round_to<float16>(-65519.0F).bits == 0xFBFF);
  CHECK(round_to<bfloat16>(std::numeric_limits<float>::max()).bits == 0x7F80);
  CHECK((round_to<bfloat16>(std::bit_cast<float>(0x7F800001U)).bits & 0x7FU) != 0);  // NaN stays NaN
  CHECK((round_to<float16>(std::bit_cast<float>(0xFF800001U)).bits & 0x3FFU) != 0);
}
