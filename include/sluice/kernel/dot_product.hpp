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

inline simd<std::int32_t> add_dot_product(const simd<std::int32_t>& sum, const quads& weights, quad numbers) noexcept {
  std::int32_t broadcast;
  std::memcpy(&broadcast, numbers.data(), sizeof broadcast);
#if defined(__AVX512VNNI__) && defined(__AVX512F__)
  return _mm512_dpbusd_epi32(sum, weights, _mm512_set1_epi32(broadcast));
#elif defined(__AVXVNNI__)
  return _mm256_dpbusd_avx_epi32(sum, weights, _mm256_set1_epi32(broadcast));
#elif defined(__AVX512BW__)
  const __m512i even = _mm512_and_si512(weights, _mm512_set1_epi16(0xFF)), odd = _mm512_srli_epi16(weights, 8);
  const __m512i n = _mm512_set1_epi32(broadcast);
  const __m512i products = _mm512_add_epi32(_mm512_madd_epi16(even, _mm512_srai_epi16(_mm512_slli_epi16(n, 8), 8)),
                                            _mm512_madd_epi16(odd, _mm512_srai_epi16(n, 8)));
  return _mm512_add_epi32(sum, products);
#elif defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i even = _mm256_and_si256(weights, _mm256_set1_epi16(0xFF)), odd = _mm256_srli_epi16(weights, 8);
  const __m256i n = _mm256_set1_epi32(broadcast);
  const __m256i products = _mm256_add_epi32(_mm256_madd_epi16(even, _mm256_srai_epi16(_mm256_slli_epi16(n, 8), 8)),
                                            _mm256_madd_epi16(odd, _mm256_srai_epi16(n, 8)));
  return _mm256_add_epi32(sum, products);
#elif defined(__SSE2__) && !defined(__AVX__)
  const __m128i even = _mm_and_si128(weights, _mm_set1_epi16(0xFF)), odd = _mm_srli_epi16(weights, 8);
  const __m128i n = _mm_set1_epi32(broadcast);
  const __m128i products = _mm_add_epi32(_mm_madd_epi16(even, _mm_srai_epi16(_mm_slli_epi16(n, 8), 8)),
                                         _mm_madd_epi16(odd, _mm_srai_epi16(n, 8)));
  return _mm_add_epi32(sum, products);
#else
  simd<std::int32_t> total = sum;
  for (std::size_t g = 0; g < numbers.size(); ++g) {
    const quads weight = (weights >> (8 * static_cast<int>(g))) & quads(0xFFU);
    total = total + cast_bits<std::int32_t>(weight) * simd<std::int32_t>(numbers[g]);
  }
  return total;
#endif
}

}  // namespace sluice::inline SLUICE_ISA::kernel
