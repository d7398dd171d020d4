/// Weights as signed powers of two of their output's largest: the logarithmic codes of MoQE.
///
///   s = max |w| of an output;  t = clamp(|w| / s, 2^(1 - L), 1), L = 2^(b-1)
///   p = ceil(log2(2 t / 3));   w ~ sign(w) s 2^p
///
/// p is the exponent of the power of two that is nearest to t in difference; exactly between two it is the lower one. A
/// code is -p, 0 .. L - 1, and L more for a weight below 0; there is no code for 0, which becomes s 2^(1 - L),
/// positive, but in an output of zeros: there s = 0 and all codes are 0. Outputs whose weights are all below 2^-118
/// count as zeros. Throws std::invalid_argument for weights that have no code. Empty matrices are valid. Kim et al.
/// 2023, "Mixture of Quantized Experts (MoQE)", arXiv:2310.02410, which finds it worse than evenly spaced codes but at
/// two bits.
#pragma once

#include <sluice/quant/round_to_nearest.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

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

inline power_codes round_to_powers(tokens_in<float> w, int bits = 4, const executor_ref& executor = {}) {
  detail::check_code_bits(bits);
  detail::check_finite_weights(w, executor);
  power_codes out;
  out.bits = bits;
  out.codes.setZero(w.rows(), w.cols());
  out.scales.assign(as_size(w.rows()), 0.0F);
  const double least = std::ldexp(1.0, 1 - static_cast<int>(out.levels()));
  executor.parallel_each(w.rows(), 16 * w.cols(), [&](index_t r) {
    const kernel::number_range range = kernel::range_with_zero(w.data() + r * w.outerStride(), w.cols());
    const float scale = (std::max)(-range.least, range.most);
    if (scale < detail::smallest_weight) return;
    out.scales[as_size(r)] = scale;
    for (index_t c = 0; c < w.cols(); ++c) {
      const double t = (std::max)(least, (std::abs)(static_cast<double>(w(r, c))) / static_cast<double>(scale));
      int exponent = 0;  // 2 t / 3 = fraction 2^exponent, 1/2 <= fraction < 1
      const double fraction = std::frexp(2 * t / 3, &exponent);
      const int p = fraction == 0.5 ? exponent - 1 : exponent;
      out.codes(r, c) = static_cast<std::uint8_t>(-p + (w(r, c) < 0 ? static_cast<int>(out.levels()) : 0));
    }
  });
  return out;
}

}  // namespace sluice::inline SLUICE_ISA
