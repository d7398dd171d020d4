/// Numbers of eight bits and fewer that files keep weights and scales in, as floats: exact for every code.
///
///   e4m3   sign, 4 exponent bits, 3 fraction bits: exponent 0 counts 2^-9, largest 448, 0x7F and 0xFF are NaN, no infinity
///   e5m2   sign, 5 exponent bits, 2 fraction bits: the upper half of a float16
///   e8m0   2^(byte - 127), 255 is NaN: scales of MXFP4
///   e2m1   sign, 2 exponent bits, 1 fraction bit: 0 0.5 1 1.5 2 3 4 6
///   iq4_nl sixteen whole numbers, the levels of ggml's IQ4_NL and IQ4_XS
///
/// Micikevicius et al. 2022 (FP8 formats), OCP Microscaling Formats 1.0. Everything is done on bits: nothing is flushed
/// to zero under -ffast-math.
#pragma once

#include <sluice/core/half.hpp>

#include <array>
#include <bit>
#include <cstdint>

namespace sluice::inline SLUICE_ISA {

constexpr float e4m3_to_float(std::uint8_t code) {
  const std::uint32_t sign = (code & 0x80U) << 24U, exponent = (code >> 3U) & 15U, fraction = code & 7U;
  if ((code & 0x7FU) == 0x7FU) return std::bit_cast<float>(sign | 0x7FC00000U);
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 120U) << 23U) | (fraction << 20U));
  const float magnitude = static_cast<float>(fraction) * 0x1p-9F;
  return sign != 0 ? -magnitude : magnitude;
}

/// The nearest code, ties to even; what is above 448 becomes 448, NaN stays NaN.
constexpr std::uint8_t round_to_e4m3(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 24U & 0x80U, magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) return static_cast<std::uint8_t>(sign | 0x7FU);
  if (magnitude >= 0x43E00000U) return static_cast<std::uint8_t>(sign | 0x7EU);  // 448
  // As for float16 (core/half.hpp): the significand loses 20 bits, below 2^-6 one more a binary exponent.
  const std::uint32_t exponent = magnitude >> 23U;
  if (exponent < 117U) return static_cast<std::uint8_t>(sign);  // below 2^-10, half of the smallest
  const std::uint32_t significand = (magnitude & 0x7FFFFFU) | 0x800000U;
  const std::uint32_t shift = exponent >= 121U ? 20U : 141U - exponent;
  const std::uint32_t kept = significand >> shift, lost = significand & ((1U << shift) - 1U), tie = 1U << (shift - 1U);
  const std::uint32_t up = lost > tie || (lost == tie && (kept & 1U)) ? 1U : 0U;
  const std::uint32_t code = exponent >= 121U ? ((exponent - 121U) << 3U) + kept + up : kept + up;
  return static_cast<std::uint8_t>(sign | code);
}

constexpr float e5m2_to_float(std::uint8_t code) { return to_float(float16{static_cast<std::uint16_t>(code << 8U)}); }

constexpr float e8m0_to_float(std::uint8_t code) {
  if (code == 255U) return std::bit_cast<float>(0x7FC00000U);
  return std::bit_cast<float>(code == 0 ? 0x00400000U : std::uint32_t(code) << 23U);
}

/// The byte of a scale that is one: a power of two from 2^-127 on; 255 for NaN.
constexpr std::uint8_t exponent_of(float scale) {
  const auto bits = std::bit_cast<std::uint32_t>(scale) & 0x7FFFFFFFU;
  return static_cast<std::uint8_t>(bits > 0x7F800000U ? 255U : bits >> 23U);
}

/// Twice the number, which is whole.
inline constexpr std::array<std::int8_t, 16> e2m1_doubled{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

constexpr float e2m1_to_float(std::uint8_t code) { return static_cast<float>(e2m1_doubled[code & 15U]) * 0.5F; }

inline constexpr std::array<std::int8_t, 16> iq4_nl_levels{-127, -104, -83, -65, -49, -35, -22, -10,
                                                           1,    13,   25,  38,  53,  69,  89,  113};

static_assert(e4m3_to_float(0x7E) == 448 && e4m3_to_float(0x81) == -0x1p-9F && e4m3_to_float(0x38) == 1);
static_assert(round_to_e4m3(448) == 0x7E && round_to_e4m3(0x1p-10F) == 0 && round_to_e4m3(0x1.8p-10F) == 1 &&
              round_to_e4m3(-1.0625F) == 0xB8 && round_to_e4m3(0x1.Ep-7F) == 8);
static_assert(e5m2_to_float(0x7B) == 57344 && e8m0_to_float(127) == 1 && e2m1_to_float(0xF) == -6);

}  // namespace sluice::inline SLUICE_ISA
