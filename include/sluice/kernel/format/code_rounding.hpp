/// Weights to the nearest of evenly spaced values: the loops that quantisers of weights spend their time in.
///
///   code = clamp(round(w / scale) + zero, ...),  0 <= code < 2^bits;   value = scale (code - zero)
///
/// The quotient is w times the inverse of the scale, both floats, and is rounded to the nearest whole number, ties to
/// even. A weight at or below `lowest` gets the lowest code whatever the quotient, which there would be a tie. Vectors
/// and single numbers give the same codes under every compiler flag. Weights are finite, or their code is any.
#pragma once

#include <sluice/kernel/simd.hpp>

#include <cmath>
#include <cstdint>
#include <limits>

namespace sluice::inline SLUICE_ISA::kernel {

struct code_grid {
  float scale = 0;
  float inverse = 0;  ///< of the scale; 0 if that is 0
  float zero = 0;     ///< a whole number
  float low = 0;      ///< the lowest and highest code, less zero
  float high = 0;
  float lowest = std::numeric_limits<float>::lowest();

  /// The code of a weight, less zero.
  float nearest(float w) const noexcept {
    if (w <= lowest) return low;
    return std::nearbyint((std::min)((std::max)(w * inverse, low), high));
  }
  float value(float nearest) const noexcept { return scale * nearest; }
};

struct number_range {
  float least = 0;
  float most = 0;
};

/// The smallest and largest of the numbers and 0.
inline number_range range_with_zero(const float* x, index_t count) noexcept {
  using vector = simd<float>;
  constexpr index_t width = simd_width<float>;
  vector least(0.0F), most(0.0F);
  index_t i = 0;
  for (; i + width <= count; i += width) {
    least = (xsimd::min)(least, load(x + i));
    most = (xsimd::max)(most, load(x + i));
  }
  if (i < count) {
    const vector rest = load_part(x + i, count - i, 0.0F);
    least = (xsimd::min)(least, rest);
    most = (xsimd::max)(most, rest);
  }
  alignas(64) float low[as_size(width)], high[as_size(width)];
  store<float>(low, least);
  store<float>(high, most);
  SLUICE_UNROLL for (index_t half = width / 2; half > 0; half /= 2) SLUICE_UNROLL for (index_t l = 0; l < half; ++l) {
    low[l] = (std::min)(low[l], low[l + half]);
    high[l] = (std::max)(high[l], high[l + half]);
  }
  return {low[0], high[0]};
}

namespace detail {

/// The lowest byte of every lane.
inline void store_low_bytes(std::uint8_t* to, const simd<std::int32_t>& v, index_t count) noexcept {
#if defined(__AVX512F__)
  if constexpr (sizeof v.data == 64) {
    if (count >= simd_width<float>) {
      const __m128i bytes = _mm512_cvtepi32_epi8(v.data);
      std::memcpy(to, &bytes, sizeof bytes);
      return;
    }
  }
#endif
  std::int32_t numbers[as_size(simd_width<float>)];
  store<std::int32_t>(numbers, v);
  for (index_t l = 0; l < (std::min)(count, simd_width<float>); ++l) to[l] = static_cast<std::uint8_t>(numbers[l]);
}

}  // namespace detail

inline void round_to_codes(const float* w, index_t count, const code_grid& grid, std::uint8_t* codes) noexcept {
  using vector = simd<float>;
  constexpr index_t width = simd_width<float>;
  // What 1.5 * 2^23 is added to becomes a whole number in the lowest bits; no flag undoes a read of bits.
  const vector inverse(grid.inverse), low(grid.low), high(grid.high), lowest(grid.lowest), rounder(0x1.8p23F);
  const simd<std::int32_t> zero(static_cast<std::int32_t>(grid.zero));
  const auto codes_of = [&](const vector& numbers) {
    const vector inside = (xsimd::min)((xsimd::max)(numbers * inverse, low), high);
    const vector chosen = xsimd::select(numbers <= lowest, low, inside);
    return cast_bits<std::int32_t>(chosen + rounder) + zero;
  };
  index_t i = 0;
  for (; i + width <= count; i += width) detail::store_low_bytes(codes + i, codes_of(load(w + i)), width);
  if (i < count) detail::store_low_bytes(codes + i, codes_of(load_part(w + i, count - i, 0.0F)), count - i);
}

}  // namespace sluice::inline SLUICE_ISA::kernel
