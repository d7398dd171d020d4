/// Linear maps on rows: y = x W^T with W [out,in], forward and backward, spread over an executor.
///
///   forward    y [n,out] (+)= x [n,in] W^T
///   backward   dx [n,in] += dy W;   dW [out,in] += dy^T x, unless W is frozen
///   a bias     add_to_rows, and backward the sum of a column
///
/// Rows are cut into blocks for y and dx, rows of W for dW; sums run over all of in, out or n in one fixed order. n = 0
/// leaves everything as it is.
#pragma once

#include <sluice/core/executor.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/kernel/gemm.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <span>

namespace sluice::inline SLUICE_ISA {

namespace detail {
inline constexpr index_t linear_row_block = 32;
inline constexpr index_t linear_weight_block = 32;

/// Rows of a task that reads a whole matrix of weights: many, for each task reads it anew, but no more than leave every
/// thread its share and stay in the second cache. Results do not depend on it.
template <typename Scalar>
index_t rows_per_reading(index_t rows, index_t width, const executor_ref& executor) {
  constexpr index_t most = 256, close_by = 512 * 1024 / static_cast<index_t>(sizeof(Scalar));
  const index_t share = (rows + executor.concurrency() - 1) / executor.concurrency();
  const index_t wanted = (std::min)({share, close_by / (std::max<index_t>)(1, width), most});
  return (std::max)(wanted / linear_row_block * linear_row_block, linear_row_block);
}
}  // namespace detail

template <typename Scalar>
void linear_forward(tokens_in<Scalar> x, const parameter<Scalar>& weight, tokens_out<Scalar> y,
                    const executor_ref& executor, kernel::write mode = kernel::write::replace) {
  const index_t work = weight.rows() * weight.cols() / 4;
  const index_t block = detail::rows_per_reading<Scalar>(x.rows(), x.cols(), executor);
  executor.parallel_blocks(x.rows(), block, work, [&](index_t begin, index_t end) {
    kernel::multiply_nt(end - begin, weight.rows(), weight.cols(), x.data() + begin * x.outerStride(), x.outerStride(),
                        weight.data(), weight.cols(), y.data() + begin * y.outerStride(), y.outerStride(), mode);
  });
}

/// dx (+)= dy W.
template <typename Scalar>
void linear_backward_inputs(const parameter<Scalar>& weight, tokens_in<Scalar> dy, tokens_out<Scalar> dx,
                            const executor_ref& executor, kernel::write mode = kernel::write::accumulate) {
  const index_t work = weight.rows() * weight.cols() / 4;
  executor.parallel_blocks(dy.rows(), detail::linear_row_block, work, [&](index_t begin, index_t end) {
    kernel::multiply_nn(end - begin, weight.cols(), weight.rows(), dy.data() + begin * dy.outerStride(),
                        dy.outerStride(), weight.data(), weight.cols(), dx.data() + begin * dx.outerStride(),
                        dx.outerStride(), mode);
  });
}

/// dW += dy^T x for the rows begin .. end of W.
template <typename Scalar>
void linear_backward_weight(tokens_in<Scalar> x, parameter<Scalar>& weight, tokens_in<Scalar> dy, index_t begin,
                            index_t end) {
  if (dy.rows() == 0) return;
  kernel::multiply_tn(end - begin, weight.cols(), dy.rows(), dy.data() + begin, dy.outerStride(), x.data(),
                      x.outerStride(), weight.gradient().data() + begin * weight.cols(), weight.cols(),
                      kernel::write::accumulate);
}

template <typename Scalar>
void linear_backward(tokens_in<Scalar> x, parameter<Scalar>& weight, tokens_in<Scalar> dy, tokens_out<Scalar> dx,
                     const executor_ref& executor) {
  linear_backward_inputs(weight, dy, dx, executor);
  if (!weight.is_learned()) return;
  weight.ensure_gradient();
  executor.parallel_blocks(weight.rows(), detail::linear_weight_block, x.rows() * weight.cols() / 4,
                           [&](index_t begin, index_t end) { linear_backward_weight(x, weight, dy, begin, end); });
}

/// m [n,out] += bias [out] in every row.
template <typename Scalar>
void add_to_rows(tokens_out<Scalar> m, const parameter<Scalar>& bias) {
  for (index_t r = 0; r < m.rows(); ++r)
    kernel::add_scaled(Scalar(1), bias.data(), m.data() + r * m.outerStride(), m.cols());
}

/// sums[c] += sum over rows of m[r,c], rows in order.
template <typename Scalar>
void add_column_sums(tokens_in<Scalar> m, std::span<Scalar> sums) {
  for (index_t r = 0; r < m.rows(); ++r)
    for (index_t c = 0; c < m.cols(); ++c) sums[static_cast<std::size_t>(c)] += m(r, c);
}

}  // namespace sluice::inline SLUICE_ISA
