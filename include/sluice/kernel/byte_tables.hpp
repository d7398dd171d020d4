/// Sums of entries of one byte, of 64 items at once: tables of 256 bytes are looked up in registers.
///
///   bit i of the result is set where   sum over m of tables[m][codes[m][i]] <= limit   codes [M,64], tables [M,256]
///
/// For lower bounds of costs: what cannot be good enough is left out at a fifth of what exact sums take. It needs
/// AVX-512 VBMI; elsewhere has_byte_tables is false and every bit is set. Sums are whole numbers: exact for M <= 257.
#pragma once

#include <sluice/kernel/table_scan.hpp>

#include <bit>
#include <cstdint>

namespace sluice::inline SLUICE_ISA::kernel {

#if defined(__AVX512VBMI__) && defined(__AVX512BW__)
inline constexpr bool has_byte_tables = true;
#else
inline constexpr bool has_byte_tables = false;
#endif

inline std::uint64_t byte_sums_at_most([[maybe_unused]] const std::uint8_t* codes, [[maybe_unused]] index_t parts,
                                       [[maybe_unused]] const std::uint8_t* tables,
                                       [[maybe_unused]] std::uint16_t limit) {
#if defined(__AVX512VBMI__) && defined(__AVX512BW__)
  const __m512i low = _mm512_set1_epi16(0xff);
  __m512i even = _mm512_setzero_si512(), odd = even;
  for (index_t m = 0; m < parts; ++m) {
    const std::uint8_t* const table = tables + m * 256;
    const __m512i places = _mm512_loadu_si512(codes + m * scan_block);
    // Seven bits say where in 128 bytes, the eighth in which 128.
    const __m512i first = _mm512_permutex2var_epi8(_mm512_loadu_si512(table), places, _mm512_loadu_si512(table + 64));
    const __m512i second =
        _mm512_permutex2var_epi8(_mm512_loadu_si512(table + 128), places, _mm512_loadu_si512(table + 192));
    const __m512i entries = _mm512_mask_blend_epi8(_mm512_movepi8_mask(places), first, second);
    even = _mm512_add_epi16(even, _mm512_and_si512(entries, low));
    odd = _mm512_add_epi16(odd, _mm512_srli_epi16(entries, 8));
  }
  const __m512i most = _mm512_set1_epi16(static_cast<short>(limit));
  std::uint64_t bits = 0;
  for (std::uint32_t left = _mm512_cmple_epu16_mask(even, most); left != 0; left &= left - 1)
    bits |= std::uint64_t{1} << (2 * std::countr_zero(left));
  for (std::uint32_t left = _mm512_cmple_epu16_mask(odd, most); left != 0; left &= left - 1)
    bits |= std::uint64_t{2} << (2 * std::countr_zero(left));
  return bits;
#else
  return ~std::uint64_t{0};
#endif
}

}  // namespace sluice::inline SLUICE_ISA::kernel
