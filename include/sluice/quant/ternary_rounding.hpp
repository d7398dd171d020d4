/// Rounds a matrix to three values an output with compensation: what QMoE does to experts before it packs them.
///
///   hi = max(0, max w), lo = min(0, min w) of an output; both 0: 1 and -1
///   q(v) = hi if v > hi / 2, lo if v < lo / 2, else 0
///
/// The levels are found once, from the weights as they are, and are exact at an output's extremes, or rounded to
/// bfloat16 if that is what they will be kept in; v is the weight with the compensation of quant/column_sweep.hpp. QMoE
/// makes the factor in the order of the inputs, {.damping = 0.1, .keeps_dead = true}. A dead input has weight 0. Throws
/// std::invalid_argument for weights that have no code. Empty matrices are valid. Equal bits for any thread count.
/// Experts are rounded one by one; a warm layer's are 64 calls. Frantar, Alistarh 2023, "QMoE: Practical Sub-1-Bit
/// Compression of Trillion-Parameter Models", arXiv:2310.16795.
#pragma once

#include <sluice/core/half.hpp>
#include <sluice/quant/compensated_rounding.hpp>

namespace sluice::inline SLUICE_ISA {

struct ternary_options {
  bool bfloat16_levels = false;  ///< QMoE's packed rows have them so (kernel/format/ternary_runs.hpp)
};

struct ternary_codes {
  matrix<std::int8_t> codes;  ///< [outputs, inputs]: -1, 0 or 1
  std::vector<float> low;     ///< [outputs], 0 or less
  std::vector<float> high;    ///< [outputs], 0 or more

  float value(index_t output, index_t input) const noexcept {
    const int code = codes(output, input);
    return code == 0 ? 0.0F : code > 0 ? high[as_size(output)] : low[as_size(output)];
  }
  matrix<float> to_matrix() const {
    matrix<float> w(codes.rows(), codes.cols());
    for (index_t o = 0; o < w.rows(); ++o)
      for (index_t i = 0; i < w.cols(); ++i) w(o, i) = value(o, i);
    return w;
  }
};

namespace detail {

struct ternary_rounder {
  const inverse_factor& factor;
  ternary_codes& out;

  void round_columns(index_t first_row, index_t rows, index_t column, index_t, const double* w, double* q,
                     index_t) const {
    const index_t input = factor.order()[as_size(column)];
    for (index_t r = 0; r < rows; ++r) {
      const auto high = static_cast<double>(out.high[as_size(first_row + r)]);
      const auto low = static_cast<double>(out.low[as_size(first_row + r)]);
      const int code = w[r] > high / 2 ? 1 : w[r] < low / 2 ? -1 : 0;
      out.codes(first_row + r, input) = static_cast<std::int8_t>(code);
      q[r] = code == 0 ? 0.0 : code > 0 ? high : low;
    }
  }
};

}  // namespace detail

inline ternary_codes ternary_rounding(tokens_in<float> w, const inverse_factor& factor, ternary_options o = {},
                                      const executor_ref& executor = {}) {
  matrix_buffer<double> ordered = detail::in_order(w, factor, executor);
  ternary_codes out;
  out.codes.resize(w.rows(), w.cols());
  for (index_t r = 0; r < w.rows(); ++r) {
    kernel::number_range range = kernel::range_with_zero(w.data() + r * w.outerStride(), w.cols());
    if (range.least == 0 && range.most == 0) range = {-1, 1};
    const auto level = [&](float v) { return o.bfloat16_levels ? to_float(round_to<bfloat16>(v)) : v; };
    out.low.push_back(level(range.least));
    out.high.push_back(level(range.most));
  }
  const detail::ternary_rounder rounder{factor, out};
  sweep_columns(ordered, factor, rounder, {}, executor);
  return out;
}

}  // namespace sluice::inline SLUICE_ISA
