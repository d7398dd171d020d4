/// The sweep of error-compensating rounding: inputs are rounded one after the other, and what rounding did to the
/// outputs is made up for by the inputs that are still to come.
///
///   w [rows, n], input order[i] of the factor in column i;  U the upper factor of the inverse second moments
///   for i = 0 .. n - 1:  q = round(w[:, i]);  e = (w[:, i] - q) / U[i][i];  w[:, j] -= e U[i][j], j > i;  w[:, i] = q
///
/// What rounds is a policy. With step > 1 it is given so many columns at once, which compensate nothing for each other
/// (vectors of weights); later columns lose least if errors are joint. Columns go in blocks: within one the
/// compensation reaches each column when it is its turn, past the block it comes as one product, so that enter(), which
/// sees a block before its first column, sees what all earlier blocks left. With step = block there is none inside a
/// block (MC-MoE at 3 bits and fewer).
///
///   enter(first_row, rows, begin, end, w, pitch)
///       optional: columns begin .. end, row r at w + r pitch, column begin first; later columns lie behind, as all
///       earlier blocks left them too
///   round_columns(first_row, rows, column, count, w, q, pitch)
///       rows 0 .. rows of column column + k at w + k pitch; fills q alike
///
/// Rows are independent of one another: a task has `rows_together` of them, and bits do not depend on the thread count.
/// The policy is shared by all tasks and may keep what it finds for each row. Arithmetic is in double. Neutral factors
/// leave the weights as they are between roundings, bit for bit. Frantar et al. 2022 (GPTQ), arXiv:2210.17323.
#pragma once

#include <sluice/quant/inverse_factor.hpp>

namespace sluice::inline SLUICE_ISA {

struct sweep_options {
  index_t block = 128;         ///< columns
  index_t step = 1;            ///< columns that are rounded together
  bool joint = false;          ///< and whose errors are (w - q) (U of those columns)^-1
  index_t rows_together = 64;  ///< rows of a task: a multiple of what is rounded together
};

namespace detail {

template <typename Rounder>
class column_sweep {
public:
  column_sweep(matrix_buffer<double>& w, const inverse_factor& factor, Rounder& rounder, const sweep_options& o)
      : w_(w), factor_(factor), rounder_(rounder), o_(o) {}

  void run(index_t first_row, index_t rows) const {
    const index_t pitch = spread_pitch(rows), block = (std::min)(o_.block, w_.cols());
    buffer<double> columns(block * pitch), errors(block * pitch), rounded(o_.step * pitch), factor(block * block),
        negative(rows * block);
    for (index_t begin = 0; begin < w_.cols(); begin += o_.block) {
      const index_t end = (std::min)(begin + o_.block, w_.cols());
      if constexpr (requires { rounder_.enter(first_row, rows, begin, end, w_.row(first_row) + begin, w_.cols()); })
        rounder_.enter(first_row, rows, begin, end, static_cast<const double*>(w_.row(first_row) + begin), w_.cols());
      for (index_t j = 0; j < end - begin; ++j) {
        for (index_t r = 0; r < rows; ++r) columns[j * pitch + r] = w_(first_row + r, begin + j);
        for (index_t k = 0; k < j; ++k) factor[j * block + k] = -factor_.row(begin + k)[begin + j];
      }
      for (index_t j = 0; j < end - begin; j += o_.step) {
        const index_t count = (std::min)(o_.step, end - begin - j);
        double* const own = columns.data() + j * pitch;
        for (index_t k = 0; k < count; ++k)
          compensate(factor.data() + (j + k) * block, errors.data(), j, own + k * pitch, rows, pitch);
        rounder_.round_columns(first_row, rows, begin + j, count, static_cast<const double*>(own), rounded.data(),
                               pitch);
        for (index_t k = 0; k < count; ++k) {
          const double diagonal = factor_.diagonal(begin + j + k);
          double* const error = errors.data() + (j + k) * pitch;
          for (index_t r = 0; r < rows; ++r) {
            const double q = rounded[k * pitch + r];
            error[r] = own[k * pitch + r] - q;
            w_(first_row + r, begin + j + k) = q;
          }
          if (o_.joint)
            for (index_t l = 0; l < k; ++l)
              kernel::add_scaled(factor[(j + k) * block + j + l], errors.data() + (j + l) * pitch, error, rows);
          for (index_t r = 0; r < rows; ++r) error[r] /= diagonal;
        }
      }
      if (end == w_.cols() || factor_.is_neutral()) continue;
      for (index_t r = 0; r < rows; ++r)
        for (index_t j = 0; j < end - begin; ++j) negative[r * block + j] = -errors[j * pitch + r];
      kernel::multiply_nn(rows, w_.cols() - end, end - begin, negative.data(), block, factor_.row(begin) + end,
                          factor_.pitch(), w_.row(first_row) + end, w_.cols(), kernel::write::accumulate);
    }
  }

private:
  /// column += sum over k < count of weights[k] errors[k]
  static void compensate(const double* weights, const double* errors, index_t count, double* column, index_t rows,
                         index_t pitch) {
    using vector = kernel::simd<double>;
    constexpr index_t width = kernel::simd_width<double>, at_once = 8;
    index_t r = 0;
    for (; r + at_once * width <= rows; r += at_once * width) {
      vector sums[as_size(at_once)];
      SLUICE_UNROLL for (index_t v = 0; v < at_once; ++v) sums[v] = kernel::load(column + r + v * width);
      for (index_t k = 0; k < count; ++k) {
        const vector weight(weights[k]);
        SLUICE_UNROLL for (index_t v = 0; v < at_once; ++v) {
          sums[v] = kernel::multiply_add<double>(weight, kernel::load(errors + k * pitch + r + v * width), sums[v]);
        }
      }
      SLUICE_UNROLL for (index_t v = 0; v < at_once; ++v) kernel::store<double>(column + r + v * width, sums[v]);
    }
    if (r < rows)
      for (index_t k = 0; k < count; ++k) kernel::add_scaled(weights[k], errors + k * pitch + r, column + r, rows - r);
  }

  matrix_buffer<double>& w_;
  const inverse_factor& factor_;
  Rounder& rounder_;
  const sweep_options& o_;
};

}  // namespace detail

/// Replaces w by what its weights are rounded to. Throws std::invalid_argument if the factor is of another width or an
/// option is below 1.
template <typename Rounder>
void sweep_columns(matrix_buffer<double>& w, const inverse_factor& factor, Rounder& rounder,
                   const sweep_options& o = {}, const executor_ref& executor = {}) {
  if (factor.inputs() != w.cols())
    throw_invalid("a matrix [", w.rows(), ", ", w.cols(), "] cannot be swept by a factor of ", factor.inputs(),
                  " inputs");
  if (o.block < 1 || o.step < 1 || o.block % o.step != 0 || o.rows_together < 1)
    throw_invalid("a sweep needs blocks of whole steps and rows, not blocks of ", o.block, " columns, steps of ",
                  o.step, " and ", o.rows_together, " rows");
  const detail::column_sweep<Rounder> sweep(w, factor, rounder, o);
  executor.parallel_blocks(w.rows(), o.rows_together, w.cols() * w.cols() / 8,
                           [&](index_t begin, index_t end) { sweep.run(begin, end - begin); });
}

}  // namespace sluice::inline SLUICE_ISA
