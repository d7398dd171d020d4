/// Codes of one bit whose errors are made up for: signs with a mean magnitude, swept as MC-MoE sweeps what gets one bit.
///
///   s = mean |v| of a group of inputs, v as all earlier blocks of the sweep left the weights;  q(v) = s for v >= 0, -s
///   otherwise;  the errors of a block are pushed on the blocks to come, as in quant/column_sweep.hpp
///
///   const inverse_factor factor(moments, {.damping = 0.01});
///   const grouped_codes codes = compensated_signs(w, factor);
///
/// In the result scales are 2 s and minima -s, as in quant/sign_codes.hpp, whose codes these are, bit for bit, with a
/// neutral factor. Groups are consecutive inputs in the order of the sweep: in order of activity group_of says whose
/// inputs are whose; of one group an output the mean is that of the weights as they are. A dead input has weight 0,
/// which counts as positive. Means are in double, in the order of the inputs; the last group may be shorter. Throws
/// std::invalid_argument for weights that have no code. Empty matrices are valid. Equal bits for any thread count. Huang
/// et al. 2024 (MC-MoE), arXiv:2410.06270, whose program does not compensate within a block at three bits and fewer.
#pragma once

#include <sluice/quant/compensated_rounding.hpp>

#include <algorithm>
#include <cmath>

namespace sluice::inline SLUICE_ISA {

struct compensated_sign_options {
  index_t group = 128;  ///< inputs that share a scale; 0: all of an output
  index_t block = 128;
  index_t step = 0;  ///< inputs that make up for nothing among themselves; 0: those of a block
};

namespace detail {

/// The policy of the sweep: a magnitude for every output and group.
class sign_rounder {
public:
  sign_rounder(const inverse_factor& factor, const compensated_sign_options& o, grouped_codes& out)
      : factor_(factor), o_(o), out_(out) {}

  /// Of weights that lie one after the other.
  template <typename Number>
  void fit(index_t row, index_t g, const Number* weights, index_t count) {
    double sum = 0;
    for (index_t i = 0; i < count; ++i) sum += (std::abs)(static_cast<double>(weights[i]));
    const auto mean = static_cast<float>(sum / static_cast<double>(count));
    out_.scales(row, g) = 2 * mean;
    out_.minima(row, g) = -mean;
  }

  void enter(index_t first_row, index_t rows, index_t begin, index_t end, const double* w, index_t pitch) {
    if (o_.group == 0) return;
    for (index_t g = (begin + out_.group - 1) / out_.group; g * out_.group < end; ++g) {
      const index_t first = g * out_.group, count = (std::min)(out_.group, out_.inputs() - first);
      for (index_t r = 0; r < rows; ++r) fit(first_row + r, g, w + r * pitch + first - begin, count);
    }
  }

  void round_columns(index_t first_row, index_t rows, index_t column, index_t count, const double* w, double* q,
                     index_t pitch) {
    for (index_t k = 0; k < count; ++k) {
      const index_t input = factor_.order()[as_size(column + k)], g = (column + k) / out_.group;
      for (index_t r = 0; r < rows; ++r) {
        const bool is_positive = w[k * pitch + r] >= 0;
        const auto magnitude = static_cast<double>(-out_.minima(first_row + r, g));
        out_.codes(first_row + r, input) = is_positive ? 1 : 0;
        q[k * pitch + r] = is_positive ? magnitude : -magnitude;
      }
    }
  }

private:
  const inverse_factor& factor_;
  const compensated_sign_options& o_;
  grouped_codes& out_;
};

}  // namespace detail

inline grouped_codes compensated_signs(tokens_in<float> w, const inverse_factor& factor,
                                       compensated_sign_options o = {}, const executor_ref& executor = {}) {
  grouped_codes out = detail::codes_to_fill(w.rows(), w.cols(), o.group, 2);
  out.bits = 1;
  out.zeros.resize(0, 0);
  out.minima.resize(out.scales.rows(), out.scales.cols());
  matrix_buffer<double> ordered = detail::in_order(w, factor, executor);
  detail::sign_rounder rounder(factor, o, out);
  if (o.group == 0)
    for (index_t r = 0; r < w.rows() && w.cols() > 0; ++r) rounder.fit(r, 0, w.data() + r * w.outerStride(), w.cols());
  else
    detail::name_groups(factor, out);
  sweep_columns(ordered, factor, rounder, {.block = o.block, .step = o.step == 0 ? o.block : o.step}, executor);
  return out;
}

}  // namespace sluice::inline SLUICE_ISA
