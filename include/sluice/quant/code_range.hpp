/// Which values the codes of a group of weights stand for, found from the group's smallest and largest weight.
///
///   b bits, m = max |w|, lo = min(w, 0), hi = max(w, 0);   w ~ scale (code - zero),  0 <= code < 2^b
///
///   full        scale = 2 m / (2^b - 1), zero = 2^(b-1)           MoQE: -m is passed by half a step, +m is not reached
///   restricted  scale = m / (2^(b-1) - 1), zero = 2^(b-1)         the lowest code unused, exact at -m and +m
///   symmetric   as full; without weights below 0 half the scale   GPTQ as released: then the upper half is clipped
///   min_max     scale = (hi - lo) / (2^b - 1), zero = round(-lo / scale)   asymmetric
///
/// Scales are floats, or rounded to 16 bits if that is how they will be kept, and codes are those nearest to what will
/// be decoded. Rounding is to nearest, ties to even; so is that of zero, which is a tie where lo = -hi. The smallest
/// weight has the lowest code where it is a tie, in `full`, `symmetric` and, with such a zero, `min_max`. A group of
/// zeros has scale 0 in `full` and `restricted`, and in the other two the scale of -1 .. 1; all its values are 0. One
/// whose weights are all below 2^-118, or too small for a scale of 16 bits, counts as zeros. Kim et al. 2023, "Mixture
/// of Quantized Experts (MoQE)", arXiv:2310.02410; Frantar et al. 2022, arXiv:2210.17323.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/half.hpp>
#include <sluice/kernel/format/code_rounding.hpp>

#include <algorithm>

namespace sluice::inline SLUICE_ISA {

enum class code_range { full, restricted, symmetric, min_max };

/// What scales are rounded to. Group formats (kernel/format/group_formats.hpp) hold codes whose scales are theirs
/// exactly.
enum class scale_type { float32, float16, bfloat16 };

namespace detail {

inline void check_code_bits(int bits) {
  if (bits < 2 || bits > 8) throw_invalid("codes of weights have 2 to 8 bits, not ", bits);
}

/// Below this an inverse might be infinite.
inline constexpr float smallest_weight = 0x1p-118F;

/// Above this a decoded weight, or a scale, might be infinite.
constexpr float largest_weight(scale_type type = scale_type::float32) noexcept {
  return type == scale_type::float16 ? 65504.0F : 0x1p126F;
}

inline float rounded_scale(float scale, scale_type type) noexcept {
  if (type == scale_type::float16) return to_float(round_to<float16>(scale));
  return type == scale_type::bfloat16 ? to_float(round_to<bfloat16>(scale)) : scale;
}

}  // namespace detail

/// least <= 0 <= most, of magnitudes up to largest_weight(type); 2 <= bits <= 8.
inline kernel::code_grid fit_code_grid(kernel::number_range group, code_range range, int bits,
                                       scale_type type = scale_type::float32) noexcept {
  const auto steps = static_cast<double>((1 << bits) - 1);
  const auto middle = static_cast<float>(1 << (bits - 1));
  double low = static_cast<double>(group.least), high = static_cast<double>(group.most);
  double most = (std::max)(-low, high);
  const bool is_zero = most < static_cast<double>(detail::smallest_weight);
  if (is_zero) low = -1, high = most = 1;
  kernel::code_grid grid;
  grid.zero = middle;
  double scale = 2 * most / steps;
  switch (range) {
    case code_range::full:
      grid.lowest = static_cast<float>(-most);
      break;
    case code_range::restricted:
      scale = most / static_cast<double>(middle - 1);
      break;
    case code_range::symmetric:
      if (low < 0)
        grid.lowest = static_cast<float>(-most);
      else
        scale /= 2;
      break;
    case code_range::min_max:
      scale = (high - low) / steps;
      grid.lowest = static_cast<float>(low);
      break;
  }
  grid.scale = detail::rounded_scale(static_cast<float>(scale), type);
  grid.inverse = grid.scale > 0 ? 1 / grid.scale : 0;
  if (range == code_range::min_max) {
    // As a float the scale is rounded, and a tie would be none.
    const double kept = type == scale_type::float32 ? scale : static_cast<double>(grid.scale);
    grid.zero = grid.scale > 0 ? static_cast<float>(std::nearbyint(-low / kept)) : 0;
  }
  grid.low = range == code_range::restricted ? 1 - middle : -grid.zero;
  grid.high = static_cast<float>(steps) - grid.zero;
  if (is_zero && (range == code_range::full || range == code_range::restricted)) {
    grid.scale = grid.inverse = 0;
    grid.lowest = std::numeric_limits<float>::lowest();
  }
  return grid;
}

}  // namespace sluice::inline SLUICE_ISA
