/// Dispatch and combine of a sparse plan, and their adjoints.
///
///   dispatch           rows[i] = input_scale(i) * x[token(i)]
///   combine            y[t] = sum over assignments i of t, by rank, of weight(i) * rows[i];  NaN for invalid tokens
///   combine_backward   drows[i] = weight(i) * dy[token(i)];  dweight(i) = <dy[token(i)], rows[i]>
///   dispatch_backward  dx[t] += sum over i of t of input_scale(i) * drows[i];  dinput_scale(i) = <x[token(i)], drows[i]>
///
/// Each token and each row is written by one task, with sums in the order of the plan: equal bits for any thread count.
/// A weight of exactly 0 leaves the row out of the sum, so an unused expert's infinity cannot reach a token.
#pragma once

#include <sluice/core/executor.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>

namespace sluice::inline SLUICE_ISA {

namespace detail {
/// Rows a task: enough work to pay for handing a task out, few enough to spread.
inline constexpr index_t rows_per_task = 32;

/// What routed rows are added to.
template <typename Scalar>
void clear_rows(tokens_out<Scalar> y, const executor_ref& executor) {
  executor.parallel_blocks(y.rows(), rows_per_task, y.cols(), [&](index_t begin, index_t end) {
    for (index_t t = begin; t < end; ++t) std::fill_n(y.data() + t * y.outerStride(), y.cols(), Scalar(0));
  });
}

template <typename Scalar, typename Plan>
void write_invalid(const Plan& plan, tokens_out<Scalar> y) {
  for (const index_t t : plan.invalid_tokens()) std::fill_n(&y(t, 0), y.cols(), quiet_nan<Scalar>());
}
}  // namespace detail

template <std::floating_point Scalar>
void dispatch(const sparse_plan<Scalar>& plan, tokens_in<Scalar> x, tokens_out<Scalar> rows, const executor_ref& executor) {
  executor.parallel_blocks(plan.size(), detail::rows_per_task, x.cols(), [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i)
      kernel::copy_scaled(plan.input_scale(i), x.data() + plan.token(i) * x.outerStride(), rows.data() + i * rows.outerStride(),
                          x.cols());
  });
}

template <std::floating_point Scalar>
void combine(const sparse_plan<Scalar>& plan, tokens_in<Scalar> rows, tokens_out<Scalar> y, const executor_ref& executor) {
  executor.parallel_blocks(plan.tokens(), detail::rows_per_task, 2 * y.cols(), [&](index_t begin, index_t end) {
    for (index_t t = begin; t < end; ++t) {
      Scalar* out = y.data() + t * y.outerStride();
      std::fill_n(out, y.cols(), Scalar(0));
      for (const index_t i : plan.of_token(t))
        if (plan.weight(i) != Scalar(0)) kernel::add_scaled(plan.weight(i), rows.data() + i * rows.outerStride(), out, y.cols());
    }
  });
  detail::write_invalid<Scalar>(plan, y);
}

template <std::floating_point Scalar>
void combine_backward(const sparse_plan<Scalar>& plan, tokens_in<Scalar> dy, tokens_in<Scalar> rows, tokens_out<Scalar> drows,
                      sparse_plan_gradient<Scalar>& dplan, const executor_ref& executor) {
  dplan.weight.resize(plan.size());
  executor.parallel_blocks(plan.size(), detail::rows_per_task, 2 * dy.cols(), [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      const Scalar* upstream = dy.data() + plan.token(i) * dy.outerStride();
      kernel::copy_scaled(plan.weight(i), upstream, drows.data() + i * drows.outerStride(), dy.cols());
      dplan.weight[i] = kernel::dot(upstream, rows.data() + i * rows.outerStride(), dy.cols());
    }
  });
}

template <std::floating_point Scalar>
void dispatch_backward(const sparse_plan<Scalar>& plan, tokens_in<Scalar> x, tokens_in<Scalar> drows, tokens_out<Scalar> dx,
                       sparse_plan_gradient<Scalar>& dplan, const executor_ref& executor) {
  dplan.input_scale.resize(plan.has_input_scale() ? plan.size() : 0);
  executor.parallel_blocks(plan.tokens(), detail::rows_per_task, 2 * dx.cols(), [&](index_t begin, index_t end) {
    for (index_t t = begin; t < end; ++t)
      for (const index_t i : plan.of_token(t)) {
        const Scalar* row = drows.data() + i * drows.outerStride();
        kernel::add_scaled(plan.input_scale(i), row, dx.data() + t * dx.outerStride(), dx.cols());
        if (plan.has_input_scale()) dplan.input_scale[i] = kernel::dot(x.data() + t * x.outerStride(), row, x.cols());
      }
  });
}

}  // namespace sluice::inline SLUICE_ISA
