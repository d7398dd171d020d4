/// Dispatch and combine of a soft plan, and their adjoints (equations in core/soft_plan.hpp).
///
///   combine_backward   drows = combine^T dy per group;   dcombine[t,s] = <dy[t], rows[s]>
///   dispatch_backward  dx += dispatch drows per group;   ddispatch[t,s] = <x[t], drows[s]>
///
/// Invalid tokens take no part: they are skipped, not multiplied by zero, so that their NaN stays with them.
#pragma once

#include <sluice/core/soft_plan.hpp>
#include <sluice/kernel/dispatch.hpp>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// rows[s of group] = sum over the group's valid tokens of factor[t,s] * x[t]. A task owns one row.
template <typename Scalar>
void mix_tokens(const soft_plan<Scalar>& plan, const matrix_buffer<Scalar>& factor, tokens_in<Scalar> x, tokens_out<Scalar> rows,
                const executor_ref& executor) {
  const index_t slots = plan.slots();
  const auto invalid = plan.invalid_tokens();
  executor.parallel_for(plan.rows(), [&](index_t task) {
    const index_t group = task / slots;
    const index_t slot = task % slots;
    const token_range range = plan.groups()[static_cast<std::size_t>(group)];
    Scalar* out = rows.data() + plan.row(group, slot) * rows.outerStride();
    std::fill_n(out, x.cols(), Scalar(0));
    for (index_t t = range.begin; t < range.end; ++t)
      if (invalid.empty() || std::find(invalid.begin(), invalid.end(), t) == invalid.end())
        kernel::add_scaled(factor(t, slot), x.data() + t * x.outerStride(), out, x.cols());
  });
}

/// y[t] (+)= sum over the slots of t's group of factor[t,s] * rows[s].
template <typename Scalar>
void mix_slots(const soft_plan<Scalar>& plan, const matrix_buffer<Scalar>& factor, tokens_in<Scalar> rows, tokens_out<Scalar> y,
               const executor_ref& executor) {
  executor.parallel_blocks(plan.tokens(), rows_per_task, [&](index_t begin, index_t end) {
    for (index_t t = begin; t < end; ++t)
      for (index_t s = 0; s < plan.slots(); ++s)
        kernel::add_scaled(factor(t, s), rows.data() + plan.row(plan.group_of(t), s) * rows.outerStride(),
                           y.data() + t * y.outerStride(), y.cols());
  });
}

/// products[t,s] = <a[t], rows[s of t's group]>.
template <typename Scalar>
void products_with_slots(const soft_plan<Scalar>& plan, tokens_in<Scalar> a, tokens_in<Scalar> rows, matrix_buffer<Scalar>& products,
                         const executor_ref& executor) {
  products.resize(plan.tokens(), plan.slots());
  executor.parallel_blocks(plan.tokens(), rows_per_task, [&](index_t begin, index_t end) {
    for (index_t t = begin; t < end; ++t)
      for (index_t s = 0; s < plan.slots(); ++s)
        products(t, s) = kernel::dot(a.data() + t * a.outerStride(),
                                     rows.data() + plan.row(plan.group_of(t), s) * rows.outerStride(), a.cols());
  });
}

}  // namespace detail

template <std::floating_point Scalar>
void dispatch(const soft_plan<Scalar>& plan, tokens_in<Scalar> x, tokens_out<Scalar> rows, const executor_ref& executor) {
  detail::mix_tokens(plan, plan.dispatch(), x, rows, executor);
}

template <std::floating_point Scalar>
void combine(const soft_plan<Scalar>& plan, tokens_in<Scalar> rows, tokens_out<Scalar> y, const executor_ref& executor) {
  y.setZero();
  detail::mix_slots(plan, plan.combine(), rows, y, executor);
  detail::write_invalid<Scalar>(plan, y);
}

template <std::floating_point Scalar>
void combine_backward(const soft_plan<Scalar>& plan, tokens_in<Scalar> dy, tokens_in<Scalar> rows, tokens_out<Scalar> drows,
                      soft_plan_gradient<Scalar>& dplan, const executor_ref& executor) {
  detail::mix_tokens(plan, plan.combine(), dy, drows, executor);
  detail::products_with_slots(plan, dy, rows, dplan.combine, executor);
}

template <std::floating_point Scalar>
void dispatch_backward(const soft_plan<Scalar>& plan, tokens_in<Scalar> x, tokens_in<Scalar> drows, tokens_out<Scalar> dx,
                       soft_plan_gradient<Scalar>& dplan, const executor_ref& executor) {
  detail::mix_slots(plan, plan.dispatch(), drows, dx, executor);
  detail::products_with_slots(plan, x, drows, dplan.dispatch, executor);
}

}  // namespace sluice::inline SLUICE_ISA
