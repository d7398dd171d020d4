/// The dot product of four 8-bit numbers in every lane, added to 32-bit sums: exact, by the machine's own instruction
/// where there is one (AVX-512 VNNI, AVX-VNNI), else by products of 16 bits.
///
///   sum[l] += sum over g = 0 .. 3 of  weights[l][g] * numbers[g]      weights 0 .. 255, numbers -128 .. 127
#pragma once

#include <sluice/kernel/simd.hpp>

#include <array>
#include <cstdint>
#include <cstring>

namespace sluice::inline SLUICE_ISA::kernel {

/// Four 8-bit numbers side by side: what is broadcast to all lanes.
using quad = std::array<std::int8_t, 4>;

/// A lane's four unsigned weights, as one number of 32 bits.
using quads = simd<std::uint32_t>;

inline quads load_quads(const std::byte* from) noexcept {
  quads q;
  static_assert(sizeof q.data == sizeof(std::uint32_t) * quads::size);
  std::memcpy(&q.data, from, sizeof q.data);
  return q;
}

namespace detail {

using halves = simd<std::int16_t>;

/// Lane by lane the sum of the products of two halves.
inline simd<std::int32_t> multiply_halves(const halves& a, const halves& b) noexcept {
#if defined(__AVX512BW__)
  return _mm512_madd_epi16(a, b);
#elif defined(__AVX2__) && !defined(__AVX512F__)
  return _mm256_madd_epi16(a, b);
#elif defined(__SSE2__) && !defined(__AVX__)
  return _mm_madd_epi16(a, b);
#else
  const auto x = cast_bits<std::int32_t>(a), y = cast_bits<std::int32_t>(b);
  return ((x << 16) >> 16) * ((y << 16) >> 16) + (x >> 16) * (y >> 16);
#endif
}

}  // namespace detail

inline simd<std::int32_t> add_dot_product(const simd<std::int32_t>& sum, const quads& weights, quad numbers) noexcept {
  std::int32_t broadcast;
  std::memcpy(&broadcast, numbers.data(), sizeof broadcast);
#if defined(__AVX512VNNI__) && defined(__AVX512F__)
  return _mm512_dpbusd_epi32(sum, weights, _mm512_set1_epi32(broadcast));
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
  return _mm256_dpbusd_avx_epi32(sum, weights, _mm256_set1_epi32(broadcast));
#else
  // Numbers 0 and 2 are the lower bytes of the halves, 1 and 3 the upper ones.
  const quads low(0x00FF00FFU);
  const auto even = cast_bits<std::int16_t>(weights & low), odd = cast_bits<std::int16_t>((weights >> 8) & low);
  const auto n = cast_bits<std::int16_t>(simd<std::int32_t>(broadcast));
  return sum + detail::multiply_halves(even, (n << 8) >> 8) + detail::multiply_halves(odd, n >> 8);
#endif
}

}  // namespace sluice::inline SLUICE_ISA::kernel
