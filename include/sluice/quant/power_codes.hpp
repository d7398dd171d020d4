/// Weights as signed powers of two of a scale of their output: the logarithmic codes of MoQE.
///
///   s = max |w| of an output, or the s of the least error;  t = clamp(|w| / s, 2^(1 - L), 1), L = 2^(b-1)
///   p = ceil(log2(2 t / 3));   w ~ sign(w) s 2^p
///
/// p is the exponent of the power of two that is nearest to t in difference; exactly between two it is the lower one. A
/// code is -p, 0 .. L - 1, and L more for a weight below 0; there is no code for 0, which becomes s 2^(1 - L),
/// positive, but in an output of zeros: there s = 0 and all codes are 0. Outputs whose weights are all below 2^-118
/// count as zeros. Throws std::invalid_argument for weights that have no code. Empty matrices are valid.
///
/// MoQE leaves open how s is searched for. Here it is the best of all, s = A / B of the exponents with the largest
/// A^2 / B, where A = sum of |w| 2^p and B = sum of 4^p: the sum of (w - w^)^2 is that of w^2 less A^2 / B. As s falls,
/// one weight after the other gets the next exponent, n (L - 1) times in all, which are sorted.
/// Kim et al. 2023, "Mixture of Quantized Experts (MoQE)", arXiv:2310.02410, which finds these codes worse than evenly
/// spaced ones but at two bits.
#pragma once

#include <sluice/quant/round_to_nearest.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

namespace sluice::inline SLUICE_ISA {

enum class power_scale { largest, least_error };

struct power_code_options {
  int bits = 4;
  power_scale scale = power_scale::largest;
};

struct power_codes {
  matrix<std::uint8_t> codes;  ///< [outputs, inputs]
  std::vector<float> scales;   ///< [outputs]
  int bits = 4;

  index_t levels() const noexcept { return index_t{1} << (bits - 1); }
  /// p of a weight, 0 or less.
  int exponent(index_t output, index_t input) const noexcept {
    return -static_cast<int>(codes(output, input) % levels());
  }
  float value(index_t output, index_t input) const noexcept {
    const float magnitude = std::ldexp(scales[as_size(output)], exponent(output, input));
    return codes(output, input) >= levels() ? -magnitude : magnitude;
  }
  matrix<float> to_matrix() const {
    matrix<float> w(codes.rows(), codes.cols());
    for (index_t o = 0; o < w.rows(); ++o)
      for (index_t i = 0; i < w.cols(); ++i) w(o, i) = value(o, i);
    return w;
  }
};

namespace detail {

/// The s in s 2^p, p = 0 .. 1 - levels, that is nearest to the weights of one output.
inline double nearest_power_scale(const float* w, index_t count, index_t levels) {
  struct step {
    double scale;      ///< below which a weight has the next exponent
    double magnitude;  ///< of the weight
    double power;      ///< before
  };
  const double least = std::ldexp(1.0, 1 - static_cast<int>(levels));
  std::vector<step> steps;
  double a = 0, b = 0;
  for (index_t c = 0; c < count; ++c) {
    const double magnitude = (std::abs)(static_cast<double>(w[c]));
    a += magnitude * least;
    b += least * least;
    // Between 2^p and 2^(p + 1) lies 3/2 2^p.
    for (double power = least; magnitude > 0 && power < 1; power *= 2)
      steps.push_back({magnitude / (1.5 * power), magnitude, power});
  }
  std::sort(steps.begin(), steps.end(), [](const step& x, const step& y) { return x.scale > y.scale; });
  double best = a / b, gain = a * best;
  for (const step& one : steps) {
    a += one.magnitude * one.power;
    b += 3 * one.power * one.power;
    if (a * (a / b) > gain) best = a / b, gain = a * best;
  }
  return best;
}

}  // namespace detail

inline power_codes round_to_powers(tokens_in<float> w, const power_code_options& o = {},
                                   const executor_ref& executor = {}) {
  detail::check_code_bits(o.bits);
  detail::check_finite_weights(w, executor);
  power_codes out;
  out.bits = o.bits;
  out.codes.setZero(w.rows(), w.cols());
  out.scales.assign(as_size(w.rows()), 0.0F);
  const double least = std::ldexp(1.0, 1 - static_cast<int>(out.levels()));
  executor.parallel_each(w.rows(), 16 * w.cols(), [&](index_t r) {
    const float* row = w.data() + r * w.outerStride();
    const kernel::number_range range = kernel::range_with_zero(row, w.cols());
    float scale = (std::max)(-range.least, range.most);
    if (scale < detail::smallest_weight) return;
    if (o.scale == power_scale::least_error)
      scale = static_cast<float>(detail::nearest_power_scale(row, w.cols(), out.levels()));
    out.scales[as_size(r)] = scale;
    for (index_t c = 0; c < w.cols(); ++c) {
      const double t = (std::clamp)((std::abs)(static_cast<double>(row[c])) / static_cast<double>(scale), least, 1.0);
      int exponent = 0;  // 2 t / 3 = fraction 2^exponent, 1/2 <= fraction < 1
      const double fraction = std::frexp(2 * t / 3, &exponent);
      const int p = fraction == 0.5 ? exponent - 1 : exponent;
      out.codes(r, c) = static_cast<std::uint8_t>(-p + (row[c] < 0 ? static_cast<int>(out.levels()) : 0));
    }
  });
  return out;
}

}  // namespace sluice::inline SLUICE_ISA
