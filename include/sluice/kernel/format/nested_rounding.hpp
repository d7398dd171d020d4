/// How a block of numbers becomes codes with scales of scales, or with a table: each run of inputs is fitted on its
/// own, then all scales are rounded to codes, and the codes are chosen anew for what the scales have become.
///
///   scaled_rounding        w = d c(r) m(q): of the scales that take a run's number of largest magnitude to levels about the
///                          extreme one, that with the least sum of squared errors (Q3_K, Q6_K, IQ4_XS)
///   ranged_rounding        w = d c(r) q - d' c'(r), c' >= 0: scale and minimum of a run by least squares, for step sizes
///                          about its range in turn (Q2_K, Q4_K, Q5_K)
///   table_rounding         as scaled_rounding, with one scale a block (IQ4_NL)
///   float_scale_rounding   a run's largest number becomes 6, as e4m3 holds the scale (NVFP4)
///
/// Fits are by squared errors, every weight counting alike. A block with NaN or infinity is NaN; one whose largest
/// number is below 2^-118 is zero.
#pragma once

#include <sluice/kernel/format/block_rounding.hpp>

#include <array>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// The code whose number is nearest to x.
template <typename Levels, int Bits>
std::uint8_t nearest_level(float x) noexcept {
  if constexpr (requires { Levels::zero; }) {
    return to_code(nearest_whole((std::clamp)(x, float(Levels::lowest), float(Levels::highest))) + Levels::zero);
  } else {
    std::uint8_t best = 0;
    float least = (std::abs)(x - Levels::value(0));
    for (std::uint8_t code = 1; code < 1 << Bits; ++code)
      if (const float distance = (std::abs)(x - Levels::value(code)); distance < least) least = distance, best = code;
    return best;
  }
}

/// The scale of a run that leaves the least sum of squared errors, of `trials` about extreme / lowest level.
template <typename Levels, int Bits>
float fitted_scale(const float* x, index_t count, float extreme_level) noexcept {
  constexpr int trials = 9;
  const float largest = block_magnitude(x, count);
  if (is_zero_block(largest)) return 0;
  const float extreme = *std::find_if(x, x + count, [&](float v) { return (std::abs)(v) == largest; });
  float best = 0, gain = -1;
  for (const float sign : {1.0F, -1.0F})
    for (int t = -trials; t <= trials; ++t) {
      const float inverse =
          sign * ((std::abs)(extreme_level) + 0.1F * float(t) * ((std::abs)(extreme_level) > 20 ? 4.0F : 1.0F)) /
          extreme;
      float sum_xq = 0, sum_qq = 0;
      for (index_t i = 0; i < count; ++i) {
        const float q = Levels::value(nearest_level<Levels, Bits>(x[i] * inverse));
        sum_xq += x[i] * q, sum_qq += q * q;
      }
      // With the best scale for these codes the squared error falls by this.
      if (sum_qq > 0 && sum_xq * sum_xq > gain * sum_qq) gain = sum_xq * sum_xq / sum_qq, best = sum_xq / sum_qq;
    }
  return best;
}

struct fitted_range {
  float scale = 0, minimum = 0;  ///< x is about scale q - minimum, minimum >= 0
};

/// Least squares for codes 0 .. most, step sizes about that of the range.
inline fitted_range fit_range(const float* x, index_t count, int most) noexcept {
  const float low = (std::min)(*std::min_element(x, x + count), 0.0F), high = *std::max_element(x, x + count);
  if (!(high > low)) return {0, -low};
  double x1 = 0, x2 = 0, least = 0;
  for (index_t i = 0; i < count; ++i) x1 += x[i], x2 += double(x[i]) * x[i];
  fitted_range best;
  for (int t = -10; t <= 14; ++t) {
    const float inverse = (float(most) + 0.1F * float(t)) / (high - low);
    double n = double(count), q1 = 0, q2 = 0, xq = 0;
    for (index_t i = 0; i < count; ++i) {
      const double q = nearest_whole((std::clamp)((x[i] - low) * inverse, 0.0F, float(most)));
      q1 += q, q2 += q * q, xq += q * x[i];
    }
    const double determinant = n * q2 - q1 * q1;
    if (!(determinant > 0)) continue;
    double scale = (n * xq - q1 * x1) / determinant, minimum = (q1 * xq - q2 * x1) / determinant;
    if (minimum < 0) scale = xq / q2, minimum = 0;
    if (!(scale > 0)) continue;
    // The sum of (scale q - minimum - x)^2.
    const double error = scale * (scale * q2 - 2 * minimum * q1 - 2 * xq) + minimum * (n * minimum + 2 * x1) + x2;
    if (best.scale == 0 || error < least)
      least = error, best = {static_cast<float>(scale), static_cast<float>(minimum)};
  }
  return best;
}

/// A scale or minimum of the whole block, as float16 holds it, and its inverse.
struct outer_scale {
  float value, inverse;
  explicit outer_scale(float exact) noexcept
      : value(to_float(round_to<float16>(exact))), inverse(value == 0 ? 0.0F : 1 / value) {}
  int code(float x, int least, int most) const noexcept {
    return nearest_whole((std::clamp)(x * inverse, float(least), float(most)));
  }
};

}  // namespace detail

/// Scales is a nested_scales; ExtremeLevel is the level of largest magnitude.
template <typename Levels, int Bits, typename Scales, int ExtremeLevel>
struct scaled_rounding {
  static void choose(const float* x, coded_block& b) noexcept {
    constexpr index_t run = Scales::run;
    constexpr int zero = Scales::zero_code;
    b.scales.fill(detail::to_code(zero));
    if (!detail::is_rounded(detail::block_magnitude(x, Scales::inputs), detail::nearest_level<Levels, Bits>(0), b)) {
      b.scales.fill(detail::to_code(zero + 1));  // NaN times one
      return;
    }
    std::array<float, 16> scales{};
    for (index_t r = 0; r < Scales::runs; ++r)
      scales[as_size(r)] = detail::fitted_scale<Levels, Bits>(x + r * run, run, float(ExtremeLevel));
    const float extreme =
        *std::max_element(scales.begin(), scales.end(), [](float p, float q) { return (std::abs)(p) < (std::abs)(q); });
    const detail::outer_scale outer(-extreme / float(zero));
    b.scale = outer.value;
    for (index_t r = 0; r < Scales::runs; ++r) {
      const int code = outer.code(scales[as_size(r)], -zero, Scales::most_code - zero);
      b.scales[as_size(r)] = detail::to_code(code + zero);
      const float scale = outer.value * float(code), inverse = code == 0 || outer.value == 0 ? 0.0F : 1 / scale;
      for (index_t i = r * run; i < (r + 1) * run; ++i)
        b.codes[as_size(i)] = detail::nearest_level<Levels, Bits>(x[i] * inverse);
    }
  }
};

/// Scales is a nested_scales_and_minima.
template <int Bits, typename Scales>
struct ranged_rounding {
  static void choose(const float* x, coded_block& b) noexcept {
    constexpr index_t run = Scales::run;
    constexpr int most = (1 << Bits) - 1;
    if (!detail::is_rounded(detail::block_magnitude(x, Scales::inputs), 0, b)) {
      b.scales.fill(1), b.minima.fill(0);
      return;
    }
    std::array<detail::fitted_range, 16> fits{};
    float scale = 0, minimum = 0;
    for (index_t r = 0; r < Scales::runs; ++r) {
      const detail::fitted_range fit = fits[as_size(r)] = detail::fit_range(x + r * run, run, most);
      scale = (std::max)(scale, fit.scale), minimum = (std::max)(minimum, fit.minimum);
    }
    const detail::outer_scale outer(scale / Scales::most_code), outer_minimum(minimum / Scales::most_code);
    b.scale = outer.value, b.minimum = outer_minimum.value;
    for (index_t r = 0; r < Scales::runs; ++r) {
      const int code = outer.code(fits[as_size(r)].scale, 0, Scales::most_code);
      const int minimum_code = outer_minimum.code(fits[as_size(r)].minimum, 0, Scales::most_code);
      b.scales[as_size(r)] = detail::to_code(code), b.minima[as_size(r)] = detail::to_code(minimum_code);
      const float inverse = code == 0 || outer.value == 0 ? 0.0F : 1 / (outer.value * float(code));
      const float least = outer_minimum.value * float(minimum_code);
      for (index_t i = r * run; i < (r + 1) * run; ++i)
        b.codes[as_size(i)] =
            detail::to_code(detail::nearest_whole((std::clamp)((x[i] + least) * inverse, 0.0F, float(most))));
    }
  }
};

template <typename Levels, int ExtremeLevel>
struct table_rounding {
  static void choose(const float* x, coded_block& b) noexcept {
    if (!detail::is_rounded(detail::block_magnitude(x, 32), 0, b)) return;
    const detail::outer_scale scale(detail::fitted_scale<Levels, 4>(x, 32, float(ExtremeLevel)));
    b.scale = scale.value;
    for (index_t i = 0; i < 32; ++i) b.codes[as_size(i)] = detail::nearest_level<Levels, 4>(x[i] * scale.inverse);
  }
};

/// NVFP4's: the scale of 16 inputs takes their largest number to 6, as e4m3 holds it; a factor is the largest scale's
/// share of 448.
template <typename Scales, bool HasFactor>
struct float_scale_rounding {
  static void choose(const float* x, coded_block& b) noexcept {
    const float largest = detail::block_magnitude(x, Scales::inputs);
    b.scales.fill(0);
    if (!detail::is_rounded(largest, 0, b)) {
      if (!detail::is_zero_block(largest)) b.scales.fill(0x7F);
      return;
    }
    b.scale = HasFactor ? largest / (6 * 448) : 1.0F;
    for (index_t r = 0; r < Scales::runs; ++r) {
      const float* const part = x + r * Scales::run;
      b.scales[as_size(r)] = round_to_e4m3(detail::block_magnitude(part, Scales::run) / 6 / b.scale);
      const float scale = Scales::scale(b, r), inverse = scale > 0 ? 1 / scale : 0.0F;
      for (index_t i = 0; i < Scales::run; ++i)
        b.codes[as_size(r * Scales::run + i)] = power_rounding::nearest(part[i] * inverse);
    }
  }
};

}  // namespace sluice::inline SLUICE_ISA
