/// Rounds a matrix to codes input after input, each rounding error made up for by the inputs that are still to come
/// (GPTQ).
///
///   w [out, in], H [in, in] second moments of its inputs:  tr((w - q) H (w - q)^T) is kept small
///
///   const inverse_factor factor(moments, {.damping = 0.01, .order_by_activity = true});
///   const grouped_codes codes = compensated_rounding(w, factor, {.bits = 4, .group = 128});
///
/// quant/column_sweep.hpp has the equations, quant/code_range.hpp what a group's codes stand for. What a group's scale
/// is found from:
///   one group an output   the whole row as it is
///   groups                consecutive inputs in the order of the sweep, with the compensation of all earlier blocks,
///                         but of none of the group's own: the length of a block changes the result. In order of
///                         activity group_of says whose inputs are whose
///   fixed_groups          consecutive inputs of the matrix as it is: group_of stays empty whatever the order
///
/// A dead input has weight 0, which one scale an output does not know of. With a neutral factor (H = I, nothing seen)
/// the result is that of round_to_nearest, bit for bit. Throws std::invalid_argument for weights that have no code.
/// Empty matrices are valid. Equal bits for any thread count. Frantar et al. 2022, "GPTQ: Accurate Post-Training
/// Quantization for Generative Pre-trained Transformers", arXiv:2210.17323.
#pragma once

#include <sluice/quant/column_sweep.hpp>
#include <sluice/quant/round_to_nearest.hpp>

namespace sluice::inline SLUICE_ISA {

struct compensated_options {
  int bits = 4;
  index_t group = 0;  ///< inputs that share a scale; 0: all of an output
  code_range range = code_range::min_max;
  scale_type scales = scale_type::float32;
  bool fixed_groups = false;
  index_t block = 128;
  index_t step = 1;  ///< inputs that make up for nothing among themselves; MC-MoE at 3 bits: a block
};

namespace detail {

/// The policy of the sweep: a grid for every output and group.
class grid_rounder {
public:
  grid_rounder(const inverse_factor& factor, const compensated_options& o, grouped_codes& out)
      : factor_(factor), o_(o), out_(out), grids_(as_size(out.scales.size())) {}

  /// What a group's scale is, from count of its weights that lie one after the other.
  void fit(index_t row, index_t g, const float* weights, index_t count) {
    kernel::number_range range = kernel::range_with_zero(weights, count);
    range.least = (std::max)(range.least, -largest_weight(o_.scales));
    range.most = (std::min)(range.most, largest_weight(o_.scales));
    const kernel::code_grid grid = fit_code_grid(range, o_.range, o_.bits, o_.scales);
    grids_[as_size(row * out_.groups() + g)] = grid;
    out_.scales(row, g) = grid.scale;
    out_.zeros(row, g) = grid.zero;
  }

  void enter(index_t first_row, index_t rows, index_t begin, index_t end, const double* w, index_t pitch) {
    if (o_.fixed_groups || o_.group == 0) return;
    buffer<float> weights(out_.group);
    for (index_t g = (begin + out_.group - 1) / out_.group; g * out_.group < end; ++g) {
      const index_t first = g * out_.group, count = (std::min)(out_.group, out_.inputs() - first);
      for (index_t r = 0; r < rows; ++r) {
        for (index_t i = 0; i < count; ++i) weights[i] = static_cast<float>(w[r * pitch + first - begin + i]);
        fit(first_row + r, g, weights.data(), count);
      }
    }
  }

  void round_columns(index_t first_row, index_t rows, index_t column, index_t count, const double* w, double* q,
                     index_t pitch) {
    for (index_t k = 0; k < count; ++k) {
      const index_t input = factor_.order()[as_size(column + k)];
      const index_t g = (o_.fixed_groups ? input : column + k) / out_.group;
      for (index_t r = 0; r < rows; ++r) {
        const kernel::code_grid& grid = grids_[as_size((first_row + r) * out_.groups() + g)];
        const float nearest = grid.nearest(static_cast<float>(w[k * pitch + r]));
        out_.codes(first_row + r, input) = static_cast<std::uint8_t>(nearest + grid.zero);
        q[k * pitch + r] = static_cast<double>(grid.value(nearest));
      }
    }
  }

private:
  const inverse_factor& factor_;
  const compensated_options& o_;
  grouped_codes& out_;
  std::vector<kernel::code_grid> grids_;  ///< [outputs, groups]
};

/// Groups of consecutive inputs in a factor's order, where that is not the matrix's.
inline void name_groups(const inverse_factor& factor, grouped_codes& out) {
  const std::vector<index_t>& order = factor.order();
  if (std::is_sorted(order.begin(), order.end())) return;
  out.group_of.resize(order.size());
  for (std::size_t i = 0; i < order.size(); ++i)
    out.group_of[as_size(order[i])] = static_cast<std::int32_t>(static_cast<index_t>(i) / out.group);
}

/// The weights in the order of a factor, dead inputs zero.
inline matrix_buffer<double> in_order(tokens_in<float> w, const inverse_factor& factor, const executor_ref& executor,
                                      scale_type type = scale_type::float32) {
  if (factor.inputs() != w.cols())
    throw_invalid("weights [", w.rows(), ", ", w.cols(), "] cannot be rounded by the moments of ", factor.inputs(),
                  " inputs");
  check_finite_weights(w, executor, type);
  matrix_buffer<double> ordered(w.rows(), w.cols());
  executor.parallel_each(w.rows(), 2 * w.cols(), [&](index_t r) {
    for (index_t i = 0; i < w.cols(); ++i) {
      const index_t input = factor.order()[as_size(i)];
      ordered(r, i) = factor.is_dead(input) ? 0.0 : static_cast<double>(w(r, input));
    }
  });
  return ordered;
}

}  // namespace detail

inline grouped_codes compensated_rounding(tokens_in<float> w, const inverse_factor& factor, compensated_options o = {},
                                          const executor_ref& executor = {}) {
  grouped_codes out = detail::codes_to_fill(w.rows(), w.cols(), o.group, o.bits);
  matrix_buffer<double> ordered = detail::in_order(w, factor, executor, o.scales);
  detail::grid_rounder rounder(factor, o, out);
  if (o.fixed_groups || o.group == 0) {
    const bool keeps_dead = o.group == 0;
    executor.parallel_blocks(w.rows(), 16, w.cols(), [&](index_t begin, index_t end) {
      buffer<float> weights(out.group);
      for (index_t r = begin; r < end; ++r)
        for (index_t g = 0; g < out.groups(); ++g) {
          const index_t first = g * out.group, count = (std::min)(out.group, w.cols() - first);
          for (index_t i = 0; i < count; ++i)
            weights[i] = factor.is_dead(first + i) && !keeps_dead ? 0.0F : w(r, first + i);
          rounder.fit(r, g, weights.data(), count);
        }
    });
  } else {
    detail::name_groups(factor, out);
  }
  sweep_columns(ordered, factor, rounder, {.block = o.block, .step = o.step}, executor);
  return out;
}

}  // namespace sluice::inline SLUICE_ISA
