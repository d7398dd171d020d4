/// Copies the little-endian, possibly unaligned elements of a file into C++ values, widening half and bfloat16 exactly.
///
/// Everything works on bits, so that -ffast-math and flush-to-zero change no value: subnormals, infinities and NaN
/// payloads of F16 and BF16 arrive unharmed. F64 read as float rounds to nearest; a finite value that no finite float is
/// near would become infinite, so exceeds_float finds it first.
#pragma once

#include <sluice/core/isa.hpp>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <span>
#include <string>

namespace sluice::inline SLUICE_ISA::detail {

static_assert(std::endian::native == std::endian::little,
              "sluice: safetensors files are little-endian; io/ does not yet support big-endian machines");

/// IEEE binary16 bits to the float of the same value.
constexpr float float_from_half(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000U) << 16U;
  const std::uint32_t exponent = (half >> 10U) & 0x1FU;
  const std::uint32_t fraction = half & 0x3FFU;
  if (exponent == 0x1FU) return std::bit_cast<float>(sign | 0x7F800000U | (fraction << 13U));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112U) << 23U) | (fraction << 13U));
  if (fraction == 0) return std::bit_cast<float>(sign);
  // Subnormal: fraction * 2^-24. With its leading one moved to bit 10 it is a normal float.
  const auto shift = static_cast<std::uint32_t>(std::countl_zero(fraction)) - 21U;
  return std::bit_cast<float>(sign | ((113U - shift) << 23U) | (((fraction << shift) & 0x3FFU) << 13U));
}

/// bfloat16 bits are the upper half of a float.
constexpr float float_from_bfloat16(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16U);
}

/// True if `value` is finite but rounds to an infinite float: its magnitude is at least FLT_MAX plus half a unit.
constexpr bool exceeds_float(double value) {
  const std::uint64_t magnitude = std::bit_cast<std::uint64_t>(value) & 0x7FFFFFFFFFFFFFFFU;
  return magnitude >= std::bit_cast<std::uint64_t>(0x1.ffffffp127) && magnitude < 0x7FF0000000000000U;
}

/// "1.5e+300"
inline std::string short_text(double value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%g", value);
  return text.data();
}

/// The i-th Stored in `bytes`; the caller has checked the bounds.
template <typename Stored>
Stored load_element(std::span<const std::byte> bytes, std::size_t i) {
  Stored value;
  std::memcpy(&value, bytes.data() + i * sizeof(Stored), sizeof(Stored));
  return value;
}

template <typename Stored, typename T, typename Convert>
void convert_elements(std::span<const std::byte> bytes, std::span<T> out, Convert convert) {
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<T>(convert(load_element<Stored>(bytes, i)));
}

static_assert(float_from_half(0x3C00) == 1.0F && float_from_half(0x0001) == 0x1p-24F);
static_assert(float_from_half(0x03FF) == 0x3FFp-24F && float_from_half(0xFBFF) == -65504.0F);
static_assert(exceeds_float(-0x1p128) && !exceeds_float(0x1.fffffefffffffp127));

}  // namespace sluice::inline SLUICE_ISA::detail
