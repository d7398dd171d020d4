/// Second moments of the inputs of a matrix, batch after batch: H = sum over rows of x^T x.
///
///   input_moments moments(D);
///   moments.add(x);                                       // [n,D], as often as there are batches
///   const inverse_factor factor(moments.to_matrix());        // quant/inverse_factor.hpp
///
/// Rows that hold NaN or infinity are left out and counted. Sums are in double, 64 rows at a time: equal bits for any
/// thread count and the same batches. n = 0 adds nothing. Memory is D (D + 8) numbers and a block of rows, whatever is
/// added.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/error.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/quant/inverse_factor.hpp>

namespace sluice::inline SLUICE_ISA {

class input_moments {
public:
  /// Throws std::invalid_argument if inputs is negative.
  explicit input_moments(index_t inputs = 0) : inputs_(inputs), pitch_(detail::spread_pitch(inputs)) {
    if (inputs < 0) throw_invalid("there are no moments of ", inputs, " inputs");
  }

  index_t inputs() const noexcept { return inputs_; }
  index_t rows() const noexcept { return rows_; }          ///< that were added
  index_t left_out() const noexcept { return left_out_; }  ///< that held NaN or infinity

  /// Throws std::invalid_argument for rows of another width.
  template <FloatOrDouble Scalar>
  void add(tokens_in<Scalar> x, const executor_ref& executor = {}) {
    if (x.cols() != inputs_) throw_invalid("moments of ", inputs_, " inputs cannot take rows of ", x.cols());
    add_rows(
        x.rows(), [&](index_t r) { return x.data() + r * x.outerStride(); }, executor);
  }
  /// The same for rows that lie anywhere: row_of(r) is the first number of row r.
  template <typename RowOf>
  void add_rows(index_t count, const RowOf& row_of, const executor_ref& executor = {}) {
    if (count > 0) make_room();
    for (index_t next = 0; next < count;) {
      index_t filled = 0;
      for (; next < count && filled < chunk; ++next) {
        const auto* const row = row_of(next);
        if (!all_finite(row, inputs_))
          ++left_out_;
        else
          std::copy_n(row, inputs_, chunk_.data() + filled++ * pitch_);
      }
      rows_ += filled;
      add_chunk(filled, executor);
    }
  }

  /// H [D,D].
  matrix<double> to_matrix() const {
    matrix<double> h = matrix<double>::Zero(inputs_, inputs_);
    if (sums_.empty()) return h;
    for (index_t i = 0; i < inputs_; ++i)
      for (index_t j = i; j < inputs_; ++j) h(i, j) = h(j, i) = sums_[i * pitch_ + j];
    return h;
  }

private:
  static constexpr index_t chunk = 64;
  static constexpr index_t block = 64;

  void make_room() {
    if (!sums_.empty() || inputs_ == 0) return;
    chunk_.resize(chunk * pitch_);
    sums_.assign(inputs_ * pitch_, 0.0);
  }
  /// The upper half, in blocks of rows.
  void add_chunk(index_t rows, const executor_ref& executor) {
    executor.parallel_blocks(inputs_, block, rows * inputs_ / 8, [&](index_t begin, index_t end) {
      kernel::multiply_tn(end - begin, inputs_ - begin, rows, chunk_.data() + begin, pitch_, chunk_.data() + begin,
                          pitch_, sums_.data() + begin * pitch_ + begin, pitch_, kernel::write::accumulate);
    });
  }

  index_t inputs_ = 0;
  index_t pitch_ = 0;
  index_t rows_ = 0;
  index_t left_out_ = 0;
  buffer<double> sums_;
  buffer<double> chunk_;
};

}  // namespace sluice::inline SLUICE_ISA
