/// Sums of M entries of tables, picked by codes of one byte: the scan of product-quantised items.
///
///   sums[i] = ((base + tables[0][codes[0][i]]) + tables[1][codes[1][i]]) + ...        i < 64
///
/// Items come in blocks of 64, part after part, so that a vector of codes belongs to one table. Every sum is one chain
/// over the parts, whatever the instruction set; entries are gathered where there is an instruction for it (AVX2,
/// AVX-512). The cost is that of the loads, M an item; tables of 256 floats for 8 parts are 8 KB and stay in the first
/// cache.
#pragma once

#include <sluice/kernel/order.hpp>

#include <cstdint>

namespace sluice::inline SLUICE_ISA::kernel {

inline constexpr index_t scan_block = 64;

namespace detail {

/// The entries of a vector of codes.
#if defined(__AVX512F__)
inline simd<float> gather(const float* table, const std::uint8_t* codes) noexcept {
  const __m512i places = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
  return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), static_cast<__mmask16>(-1), places, table, 4);
}
inline simd<double> gather(const double* table, const std::uint8_t* codes) noexcept {
  const __m256i places = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
  return _mm512_mask_i32gather_pd(_mm512_setzero_pd(), static_cast<__mmask8>(-1), places, table, 8);
}
#elif defined(__AVX2__)
inline simd<float> gather(const float* table, const std::uint8_t* codes) noexcept {
  const __m256i places = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
  const __m256 all = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
  return _mm256_mask_i32gather_ps(_mm256_setzero_ps(), table, places, all, 4);
}
inline simd<double> gather(const double* table, const std::uint8_t* codes) noexcept {
  std::int32_t four;
  std::memcpy(&four, codes, sizeof four);
  const __m128i places = _mm_cvtepu8_epi32(_mm_cvtsi32_si128(four));
  const __m256d all = _mm256_castsi256_pd(_mm256_set1_epi64x(-1));
  return _mm256_mask_i32gather_pd(_mm256_setzero_pd(), table, places, all, 8);
}
#else
template <typename Scalar>
simd<Scalar> gather(const Scalar* table, const std::uint8_t* codes) noexcept {
  Scalar entries[as_size(simd_width<Scalar>)];
  SLUICE_UNROLL for (index_t i = 0; i < simd_width<Scalar>; ++i) entries[i] = table[codes[i]];
  return load(entries);
}
#endif

}  // namespace detail

/// codes [M,64] of one block, tables [M, entries] with an entry for every code, sums [64].
template <typename Scalar>
void sum_entries(const std::uint8_t* codes, index_t parts, const Scalar* tables, index_t entries, Scalar base,
                 Scalar* sums) {
  constexpr index_t width = simd_width<Scalar>, chains = 4;
  for (index_t i = 0; i < scan_block; i += chains * width) {
    simd<Scalar> sum[as_size(chains)];
    SLUICE_UNROLL for (index_t c = 0; c < chains; ++c) sum[c] = simd<Scalar>(base);
    for (index_t m = 0; m < parts; ++m) {
      SLUICE_UNROLL for (index_t c = 0; c < chains; ++c) sum[c] =
          sum[c] + detail::gather(tables + m * entries, codes + m * scan_block + i + c * width);
    }
    SLUICE_UNROLL for (index_t c = 0; c < chains; ++c) store<Scalar>(sums + i + c * width, sum[c]);
  }
}

/// Bit i is set where sums[i], i < 64, is at most the limit, or NaN.
template <typename Scalar>
std::uint64_t sums_at_most(const Scalar* sums, Scalar limit) noexcept {
  constexpr index_t width = simd_width<Scalar>;
  const simd_keys<Scalar> most(order_key(limit));
  std::uint64_t bits = 0;
  SLUICE_UNROLL for (index_t i = 0; i < scan_block; i += width) bits |=
      (~lane_bits(order_keys<Scalar>(load(sums + i)) > most) & (~std::uint64_t{0} >> (64 - width))) << i;
  return bits;
}

}  // namespace sluice::inline SLUICE_ISA::kernel
