/// Sixteen-bit numbers that weights are stored in; arithmetic is done in float.
///
///   bfloat16   8 exponent bits, 7 fraction bits: the upper half of a float
///   float16    5 exponent bits, 10 fraction bits (IEEE binary16), largest 65504
///
/// To float every value converts exactly. From float and double: round to nearest, ties to even; what is too large
/// becomes infinity, NaN stays NaN. Everything is done on bits, so -ffast-math changes nothing.
#pragma once

#include <sluice/core/isa.hpp>

#include <bit>
#include <concepts>
#include <cstdint>

namespace sluice::inline SLUICE_ISA {

struct bfloat16 {
  std::uint16_t bits = 0;
  friend constexpr bool operator==(bfloat16, bfloat16) = default;
};

struct float16 {
  std::uint16_t bits = 0;
  friend constexpr bool operator==(float16, float16) = default;
};

constexpr float to_float(bfloat16 value) { return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16U); }

constexpr float to_float(float16 value) {
  const std::uint32_t sign = (value.bits & 0x8000U) << 16U;
  const std::uint32_t exponent = (value.bits >> 10U) & 0x1FU;
  const std::uint32_t fraction = value.bits & 0x3FFU;
  if (exponent == 0x1FU) return std::bit_cast<float>(sign | 0x7F800000U | (fraction << 13U));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112U) << 23U) | (fraction << 13U));
  if (fraction == 0) return std::bit_cast<float>(sign);
  // Subnormal: fraction * 2^-24. With its leading one moved to bit 10 it is a normal float.
  const auto shift = static_cast<std::uint32_t>(std::countl_zero(fraction)) - 21U;
  return std::bit_cast<float>(sign | ((113U - shift) << 23U) | (((fraction << shift) & 0x3FFU) << 13U));
}

template <typename Half>
constexpr Half round_to(float value);

template <>
constexpr bfloat16 round_to<bfloat16>(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U)
    return {static_cast<std::uint16_t>((bits >> 16U) | 0x40U)};  // NaN stays quiet
  return {static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16U) & 1U)) >> 16U)};
}

template <>
constexpr float16 round_to<float16>(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16U) & 0x8000U);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
  const auto with_sign = [sign](std::uint32_t half) { return float16{static_cast<std::uint16_t>(sign | half)}; };
  if (magnitude > 0x7F800000U) return with_sign(0x7E00U);
  if (magnitude >= 0x477FF000U) return with_sign(0x7C00U);  // 65520 and more
  // The 24-bit significand is shifted right until its last bit is worth a half's; what falls off decides the rounding.
  const std::uint32_t exponent = magnitude >> 23U;
  if (exponent < 102U) return with_sign(0);  // below 2^-25, half of the smallest half
  const std::uint32_t significand = (magnitude & 0x7FFFFFU) | 0x800000U;
  const std::uint32_t shift = exponent >= 113U ? 13U : 126U - exponent;
  const std::uint32_t kept = significand >> shift;
  const std::uint32_t lost = significand & ((1U << shift) - 1U);
  const std::uint32_t tie = 1U << (shift - 1U);
  const std::uint32_t up = lost > tie || (lost == tie && (kept & 1U)) ? 1U : 0U;
  // The leading one adds 1 to the exponent field; a carry out of the fraction does too, and rightly so.
  return with_sign(exponent >= 113U ? ((exponent - 113U) << 10U) + kept + up : kept + up);
}

/// From double in one rounding: the float between takes the odd one of its two neighbours, so it never is a tie or a
/// number of the sixteen-bit type that the double is not.
template <typename Half>
constexpr Half round_to(double value) {
  const auto nearest = static_cast<float>(value);
  if (std::bit_cast<std::uint64_t>(static_cast<double>(nearest)) == std::bit_cast<std::uint64_t>(value) ||
      (std::bit_cast<std::uint32_t>(nearest) & 0x7FFFFFFFU) > 0x7F800000U)
    return round_to<Half>(nearest);
  auto bits = std::bit_cast<std::uint32_t>(nearest);
  const double back = nearest;
  const bool is_negative = bits >> 31U != 0;
  if (is_negative ? back < value : back > value) --bits;  // towards zero
  return round_to<Half>(std::bit_cast<float>(bits | 1U));
}

/// An element of an array of weights as a number to calculate with.
template <std::floating_point Scalar>
constexpr Scalar to_number(Scalar value) {
  return value;
}
template <std::integral Whole>
constexpr float to_number(Whole value) {
  return static_cast<float>(value);
}
constexpr float to_number(bfloat16 value) { return to_float(value); }
constexpr float to_number(float16 value) { return to_float(value); }

/// The element that is nearest to a number; for whole elements the number has to be one that they hold.
template <typename Element, std::floating_point Scalar>
constexpr Element to_element(Scalar value) {
  if constexpr (std::floating_point<Element> || std::integral<Element>)
    return static_cast<Element>(value);
  else
    return round_to<Element>(value);
}

static_assert(to_float(float16{0x3C00}) == 1.0F && to_float(float16{0x0001}) == 0x1p-24F);
static_assert(to_float(float16{0x03FF}) == 0x3FFp-24F && to_float(float16{0xFBFF}) == -65504.0F);
static_assert(round_to<float16>(0x1p-24F).bits == 1 && round_to<float16>(0x1p-25F).bits == 0 &&
              round_to<float16>(0x1.8p-25F).bits == 1 && round_to<float16>(65519.0F).bits == 0x7BFF &&
              round_to<float16>(65520.0F).bits == 0x7C00 && round_to<float16>(1.0F).bits == 0x3C00);
static_assert(round_to<float16>(0x1.00200001p0).bits == 0x3C01 && round_to<float16>(0x1.002p0).bits == 0x3C00 &&
              round_to<float16>(-0x1.00200001p0).bits == 0xBC01 && round_to<float16>(-0x1p-1074).bits == 0x8000);
static_assert(round_to<bfloat16>(1.0F).bits == 0x3F80 && round_to<bfloat16>(0x1.01p0F).bits == 0x3F80 &&
              round_to<bfloat16>(0x1.03p0F).bits == 0x3F82);

}  // namespace sluice::inline SLUICE_ISA
