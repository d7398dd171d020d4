/// Dispatch and combine of a soft plan, and their adjoints (equations in core/soft_plan.hpp).
///
///   combine_backward   drows = combine^T dy per group;   dcombine[t,s] = <dy[t], rows[s]>
///   dispatch_backward  dx += dispatch drows per group;   ddispatch[t,s] = <x[t], drows[s]>
///
/// All are matrix products per group. A token whose row of the matrix is all zero is skipped, not multiplied by zero,
/// and the gradient of that row is written as zero. Tasks own rows, sums run in one order: equal bits for any thread
/// count.
#pragma once

#include <sluice/core/soft_plan.hpp>
#include <sluice/kernel/dispatch.hpp>
#include <sluice/kernel/gemm.hpp>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// Slots whose rows lie a fixed distance apart in the experts' input, so that one product serves them all.
struct slot_runs {
  index_t length;    ///< slots in a run
  index_t distance;  ///< rows between neighbours
};

template <typename Scalar>
slot_runs runs_of(const soft_plan<Scalar>& plan) {
  const auto groups = static_cast<index_t>(plan.groups().size());
  if (groups == 1) return {plan.slot_count(), 1};
  if (plan.slots_per_expert() == 1) return {plan.slot_count(), groups};
  return {plan.slots_per_expert(), 1};
}

/// f(group, begin, end) for every run of used tokens of one group in [begin, end).
template <typename Scalar, typename F>
void for_each_token_run(const soft_plan<Scalar>& plan, const matrix_buffer<Scalar>& factor, index_t begin, index_t end,
                        F&& f) {
  while (begin < end) {
    const index_t group = plan.group_of(begin);
    const index_t border = (std::min)(end, plan.groups()[static_cast<std::size_t>(group)].end);
    for_each_used_run(factor, begin, border, [&](index_t first, index_t last) { f(group, first, last); });
    begin = border;
  }
}

/// rows[s of group] = sum over the group's tokens of factor[t,s] * x[t]. A task owns a block of slots of one group.
template <typename Scalar>
void mix_tokens(const soft_plan<Scalar>& plan, const matrix_buffer<Scalar>& factor, tokens_in<Scalar> x,
                tokens_out<Scalar> rows, const executor_ref& executor) {
  const slot_runs runs = runs_of(plan);
  const index_t blocks = (runs.length + rows_per_task - 1) / rows_per_task;
  const index_t tasks_per_group = plan.slot_count() / runs.length * blocks;
  const index_t stride = runs.distance * rows.outerStride();
  const index_t work = plan.tokens() * plan.slot_count() * x.cols() / 4;
  const auto groups = static_cast<index_t>(plan.groups().size());
  executor.for_work(work).parallel_for(groups * tasks_per_group, [&](index_t task) {
    const index_t group = task / tasks_per_group;
    const index_t run = task % tasks_per_group / blocks;
    const index_t offset = task % blocks * rows_per_task;
    const index_t slot = run * runs.length + offset;
    const index_t count = (std::min)(rows_per_task, runs.length - offset);
    Scalar* out = rows.data() + plan.row(group, slot) * rows.outerStride();
    for (index_t s = 0; s < count; ++s) std::fill_n(out + s * stride, x.cols(), Scalar(0));
    const token_range range = plan.groups()[static_cast<std::size_t>(group)];
    for_each_used_run(factor, range.begin, range.end, [&](index_t begin, index_t end) {
      kernel::multiply_tn(count, x.cols(), end - begin, factor.row(begin) + slot, factor.cols(),
                          x.data() + begin * x.outerStride(), x.outerStride(), out, stride, kernel::write::accumulate);
    });
  });
}

/// y[t] (+)= sum over the slots of t's group of factor[t,s] * rows[s].
template <typename Scalar>
void mix_slots(const soft_plan<Scalar>& plan, const matrix_buffer<Scalar>& factor, tokens_in<Scalar> rows,
               tokens_out<Scalar> y, kernel::write mode, const executor_ref& executor) {
  const slot_runs runs = runs_of(plan);
  const index_t work = plan.slot_count() * y.cols() / 4;
  executor.parallel_blocks(plan.tokens(), rows_per_task, work, [&](index_t first, index_t last) {
    if (mode == kernel::write::replace)
      for (index_t t = first; t < last; ++t) std::fill_n(y.data() + t * y.outerStride(), y.cols(), Scalar(0));
    for_each_token_run(plan, factor, first, last, [&](index_t group, index_t begin, index_t end) {
      for (index_t slot = 0; slot < plan.slot_count(); slot += runs.length)
        kernel::multiply_nn(end - begin, y.cols(), runs.length, factor.row(begin) + slot, factor.cols(),
                            rows.data() + plan.row(group, slot) * rows.outerStride(),
                            runs.distance * rows.outerStride(), y.data() + begin * y.outerStride(), y.outerStride(),
                            kernel::write::accumulate);
    });
  });
}

/// products[t,s] = <a[t], rows[s of t's group]>, zero for tokens whose row of factor is zero.
template <typename Scalar>
void products_with_slots(const soft_plan<Scalar>& plan, const matrix_buffer<Scalar>& factor, tokens_in<Scalar> a,
                         tokens_in<Scalar> rows, matrix_buffer<Scalar>& products, const executor_ref& executor) {
  const slot_runs runs = runs_of(plan);
  products.resize(plan.tokens(), plan.slot_count());
  const index_t work = plan.slot_count() * a.cols() / 4;
  executor.parallel_blocks(plan.tokens(), rows_per_task, work, [&](index_t first, index_t last) {
    std::fill_n(products.row(first), (last - first) * plan.slot_count(), Scalar(0));
    for_each_token_run(plan, factor, first, last, [&](index_t group, index_t begin, index_t end) {
      for (index_t slot = 0; slot < plan.slot_count(); slot += runs.length)
        kernel::multiply_nt(end - begin, runs.length, a.cols(), a.data() + begin * a.outerStride(), a.outerStride(),
                            rows.data() + plan.row(group, slot) * rows.outerStride(),
                            runs.distance * rows.outerStride(), products.row(begin) + slot, products.cols());
    });
  });
}

}  // namespace detail

template <std::floating_point Scalar>
void dispatch(const soft_plan<Scalar>& plan, tokens_in<Scalar> x, tokens_out<Scalar> rows,
              const executor_ref& executor) {
  detail::mix_tokens(plan, plan.dispatch(), x, rows, executor);
}

template <std::floating_point Scalar>
void combine(const soft_plan<Scalar>& plan, tokens_in<Scalar> rows, tokens_out<Scalar> y,
             const executor_ref& executor) {
  detail::mix_slots(plan, plan.combine(), rows, y, kernel::write::replace, executor);
  detail::write_invalid<Scalar>(plan, y);
}

template <std::floating_point Scalar>
void combine_backward(const soft_plan<Scalar>& plan, tokens_in<Scalar> dy, tokens_in<Scalar> rows,
                      tokens_out<Scalar> drows, soft_plan_gradient<Scalar>& dplan, const executor_ref& executor) {
  detail::mix_tokens(plan, plan.combine(), dy, drows, executor);
  detail::products_with_slots(plan, plan.combine(), dy, rows, dplan.combine, executor);
}

template <std::floating_point Scalar>
void dispatch_backward(const soft_plan<Scalar>& plan, tokens_in<Scalar> x, tokens_in<Scalar> drows,
                       tokens_out<Scalar> dx, soft_plan_gradient<Scalar>& dplan, const executor_ref& executor) {
  detail::mix_slots(plan, plan.dispatch(), drows, dx, kernel::write::accumulate, executor);
  detail::products_with_slots(plan, plan.dispatch(), x, drows, dplan.dispatch, executor);
}

}  // namespace sluice::inline SLUICE_ISA
