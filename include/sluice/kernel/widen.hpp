/// Loads a vector of sixteen-bit numbers as floats, exact for every value, subnormals, infinities and NaN included; and
/// one of bytes as words.
#pragma once

#include <sluice/core/half.hpp>
#include <sluice/kernel/simd.hpp>

#include <concepts>
#include <cstdint>
#include <cstring>

namespace sluice::inline SLUICE_ISA::kernel {

namespace detail {

using lane_words = xsimd::batch<std::uint32_t>;

/// One vector of uint16 as uint32 lanes.
inline lane_words load_bits(const std::uint16_t* from) noexcept {
  constexpr int lanes = static_cast<int>(lane_words::size);
#if defined(__GNUC__)
  // The compilers turn this conversion into the instruction set's own widening; xsimd 8 has no name for it.
  typedef std::uint16_t narrow __attribute__((vector_size(2 * lanes)));
  typedef std::uint32_t wide __attribute__((vector_size(4 * lanes)));
  narrow bits;
  std::memcpy(&bits, from, sizeof bits);
  const wide widened = __builtin_convertvector(bits, wide);
  lane_words result;
  static_assert(sizeof widened == sizeof result.data);
  std::memcpy(&result.data, &widened, sizeof widened);
  return result;
#else
  std::uint32_t bits[lanes];
  for (int i = 0; i < lanes; ++i) bits[i] = from[i];
  return lane_words::load_unaligned(bits);
#endif
}

}  // namespace detail

/// Numbers as they are, for code that loads any kind.
template <std::floating_point Scalar>
simd<Scalar> load_widened(const Scalar* from) noexcept {
  return load(from);
}

/// Bytes become words.
inline simd<std::uint32_t> load_widened(const std::uint8_t* from) noexcept {
#if defined(__AVX512F__)
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__AVX2__)
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#else
  std::uint32_t words[detail::lane_words::size];
  for (std::size_t l = 0; l < detail::lane_words::size; ++l) words[l] = from[l];
  return detail::lane_words::load_unaligned(words);
#endif
}

inline simd<float> load_widened(const bfloat16* from) noexcept {
#if defined(__AVX512BW__)
  // Word i goes to the upper half of lane i and zero to the lower: one instruction, where widening and shifting are
  // two.
  const __m512i words = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  const __m512i places = _mm512_set_epi32(0xF0000, 0xE0000, 0xD0000, 0xC0000, 0xB0000, 0xA0000, 0x90000, 0x80000,
                                          0x70000, 0x60000, 0x50000, 0x40000, 0x30000, 0x20000, 0x10000, 0);
  return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xAAAAAAAAU, places, words));
#else
  return cast_bits<float>(detail::load_bits(&from->bits) << 16);
#endif
}

inline simd<float> load_widened(const float16* from) noexcept {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__AVX__) && defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  using bits_t = detail::lane_words;
  const bits_t half = detail::load_bits(&from->bits);
  const bits_t magnitude = (half & bits_t(0x7FFFU)) << 13;
  const bits_t sign = (half & bits_t(0x8000U)) << 16;
  // Normal: the exponent gains 127 - 15. Infinity and NaN: it gains that twice. Subnormal: the fraction f counts 2^-24,
  // and 2^-14 (1 + f 2^-10) - 2^-14 is just that, without a float that -ffast-math would flush to zero.
  const bits_t normal = magnitude + bits_t(112U << 23);
  const bits_t special = magnitude + bits_t(224U << 23);
  const simd<float> subnormal = cast_bits<float>(magnitude + bits_t(113U << 23)) - simd<float>(0x1p-14F);
  const bits_t chosen = select_lanes(magnitude < bits_t(0x0F800000U), normal, special);
  const bits_t value = select_lanes(magnitude < bits_t(0x00800000U), cast_bits<std::uint32_t>(subnormal), chosen);
  return cast_bits<float>(value | sign);
#endif
}

}  // namespace sluice::inline SLUICE_ISA::kernel
