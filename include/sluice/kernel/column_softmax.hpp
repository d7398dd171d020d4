/// Softmax down the columns of a block of rows, forward and backward: the dispatch weights of Soft MoE.
///
///   out[t,s] = exp(in[t,s]) / sum over the block's used rows u of exp(in[u,s])        every column sums to 1
///   din[t,s] += out[t,s] * (dout[t,s] - sum over u of out[u,s] dout[u,s])
///
/// Rows for which used(t) is false are neither read nor written; without used rows nothing happens. The maximum of a
/// column is subtracted first; +infinity is a value: entries that are infinite share the column's mass. Used rows must
/// not hold NaN. Columns are cut into blocks of fixed size, one a task, rows go in order: equal bits for any thread
/// count.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/context.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/kernel/softmax.hpp>

#include <algorithm>
#include <array>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// Columns of one task: a cache line of floats, so that rows are read by whole lines.
inline constexpr index_t softmax_columns = 16;

template <typename Scalar>
using column_numbers = std::array<Scalar, softmax_columns>;

/// f(row, column, position of the column in its block) for the used rows of a block of columns.
template <typename Used, typename F>
void for_each_used(token_range rows, Used& used, index_t first, index_t last, F&& f) {
  for (index_t t = rows.begin; t < rows.end; ++t)
    if (used(t))
      for (index_t s = first; s < last; ++s) f(t, s, static_cast<std::size_t>(s - first));
}

}  // namespace detail

template <typename Scalar, typename Used>
void column_softmax(const matrix_buffer<Scalar>& in, token_range rows, Used used, matrix_buffer<Scalar>& out,
                    const executor_ref& executor) {
  using kernel::simd;
  constexpr index_t width = kernel::simd_width<Scalar>;
  executor.parallel_blocks(in.cols(), detail::softmax_columns, 16 * rows.size(), [&](index_t first, index_t last) {
    for (index_t s = first; s < last; s += width) {
      const index_t lanes = (std::min)(width, last - s);
      const auto load = [&](const Scalar* numbers) {
        return lanes == width ? kernel::load(numbers) : kernel::load_part(numbers, lanes, Scalar(0));
      };
      const auto store = [&](Scalar* numbers, const simd<Scalar>& v) {
        lanes == width ? kernel::store<Scalar>(numbers, v) : kernel::store_part<Scalar>(numbers, v, lanes);
      };
      kernel::simd_keys<Scalar> top(-kernel::infinity_key<Scalar>);
      for (index_t t = rows.begin; t < rows.end; ++t)
        if (used(t)) top = (xsimd::max)(top, kernel::order_keys<Scalar>(load(in.row(t) + s)));
      const simd<Scalar> maximum = kernel::numbers_of_keys<Scalar>(top);
      simd<Scalar> sum(Scalar(0));
      for (index_t t = rows.begin; t < rows.end; ++t) {
        if (!used(t)) continue;
        const simd<Scalar> e = kernel::detail::exponential<Scalar>(load(in.row(t) + s), top, maximum);
        store(out.row(t) + s, e);
        sum += e;
      }
      for (index_t t = rows.begin; t < rows.end; ++t)
        if (used(t)) store(out.row(t) + s, load(out.row(t) + s) / sum);
    }
  });
}

template <typename Scalar, typename Used>
void column_softmax_backward(const matrix_buffer<Scalar>& out, const matrix_buffer<Scalar>& dout, token_range rows,
                             Used used, matrix_buffer<Scalar>& din, const executor_ref& executor) {
  executor.parallel_blocks(out.cols(), detail::softmax_columns, 4 * rows.size(), [&](index_t first, index_t last) {
    detail::column_numbers<Scalar> inner{};
    detail::for_each_used(rows, used, first, last,
                          [&](index_t t, index_t s, std::size_t j) { inner[j] += out(t, s) * dout(t, s); });
    detail::for_each_used(rows, used, first, last, [&](index_t t, index_t s, std::size_t j) {
      din(t, s) += out(t, s) * (dout(t, s) - inner[j]);
    });
  });
}

}  // namespace sluice::inline SLUICE_ISA
