/// Tables of sixteen entries, looked up in registers.
///
///   look_up_bytes(table, codes)      every byte of codes, 0 .. 15, becomes the byte of the table at that place
///   look_up_numbers(table, codes)    every lane's lowest four bits become a float; what stands above them does not matter.
///                                    Only where has_number_tables: elsewhere it is not worth its instructions
#pragma once

#include <sluice/kernel/dot_product.hpp>

#include <array>
#include <cstdint>

namespace sluice::inline SLUICE_ISA::kernel {

#if defined(__AVX512F__)
inline constexpr bool has_number_tables = true;
#else
inline constexpr bool has_number_tables = false;
#endif

inline quads look_up_bytes(const std::array<std::uint8_t, 16>& table, const quads& codes) noexcept {
#if defined(__AVX512BW__)
  const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table.data()));
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(entries), codes);
#elif defined(__AVX2__) && !defined(__AVX512F__)
  const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table.data()));
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(entries), codes);
#elif defined(__SSSE3__) && !defined(__AVX__)
  return _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table.data())), codes);
#elif defined(__aarch64__)
  return vreinterpretq_u32_u8(vqtbl1q_u8(vld1q_u8(table.data()), vreinterpretq_u8_u32(codes)));
#else
  std::uint8_t bytes[4 * quads::size];
  std::memcpy(bytes, &codes.data, sizeof bytes);
  for (std::uint8_t& b : bytes) b = table[b & 15U];
  quads result;
  std::memcpy(&result.data, bytes, sizeof bytes);
  return result;
#endif
}

inline simd<float> look_up_numbers(const std::array<float, 16>& table, const quads& codes) noexcept {
#if defined(__AVX512F__)
  return _mm512_permutexvar_ps(codes, _mm512_loadu_ps(table.data()));
#else
  float numbers[simd_width<float>];
  std::uint32_t places[quads::size];
  codes.store_unaligned(places);
  for (std::size_t l = 0; l < quads::size; ++l) numbers[l] = table[places[l] & 15U];
  return load(numbers);
#endif
}

}  // namespace sluice::inline SLUICE_ISA::kernel
