/// Entries of a table at the places that lanes say: one instruction where there is one (AVX2, AVX-512), else a loop.
#pragma once

#include <sluice/kernel/simd.hpp>

#include <cstdint>

namespace sluice::inline SLUICE_ISA::kernel {

/// table[places[l]] in lane l.
inline simd<std::uint32_t> gather(const std::uint32_t* table, const simd<std::uint32_t>& places) noexcept {
#if defined(__AVX512F__)
  return _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), static_cast<__mmask16>(-1), places, table, 4);
#elif defined(__AVX2__)
  return _mm256_i32gather_epi32(reinterpret_cast<const int*>(table), places, 4);
#else
  std::uint32_t at[as_size(simd_width<std::uint32_t>)], entries[as_size(simd_width<std::uint32_t>)];
  store<std::uint32_t>(at, places);
  SLUICE_UNROLL for (index_t l = 0; l < simd_width<std::uint32_t>; ++l) entries[l] = table[at[l]];
  return load(entries);
#endif
}

}  // namespace sluice::inline SLUICE_ISA::kernel
