/// Dispatch and combine of a plan whose rows are tokens with a weight, and their adjoints; the same for some of its
/// rows.
///
///   dispatch           rows[i] = input_scale(i) * x[token(i)]                                        gather_rows
///   combine            y[t] = sum over the rows i of t of weight(i) * rows[i];  NaN for invalid tokens  add_rows: y +=
///   combine_backward   drows[i] = weight(i) * dy[token(i)];  dweight(i) = <dy[token(i)], rows[i]>       weigh_rows
///   dispatch_backward  dx[t] += sum over i of t of input_scale(i) * drows[i];  dinput_scale(i) = <x[token(i)], drows[i]>
///                                                                                                    add_input_rows
/// Sums go in the order of the rows, that is of the experts, as in expert/grouped_forward.hpp: equal bits for both
/// roads. A task owns rows, or columns of y and dx: equal bits for any thread count. A weight or scale of exactly 0
/// leaves the row out of the sum, so an unused expert's infinity cannot reach a token.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/routed_rows.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// Rows a task: enough work to pay for handing a task out, few enough to spread.
inline constexpr index_t rows_per_task = 32;

/// What routed rows are added to.
template <typename Scalar>
void clear_rows(tokens_out<Scalar> y, const executor_ref& executor) {
  executor.parallel_each(y.rows(), y.cols(),
                         [&](index_t t) { std::fill_n(y.data() + t * y.outerStride(), y.cols(), Scalar(0)); });
}

template <typename Scalar, typename Plan>
void write_invalid(const Plan& plan, tokens_out<Scalar> y) {
  for (const index_t t : plan.invalid_tokens()) std::fill_n(&y(t, 0), y.cols(), quiet_nan<Scalar>());
}

/// f(i) for the rows of the view, in blocks; `work` is that of one.
template <typename Scalar, typename F>
void for_each_routed(const routed_rows<Scalar>& view, index_t work, const executor_ref& executor, F&& f) {
  executor.parallel_blocks(view.size(), rows_per_task, work, [&](index_t begin, index_t end) {
    for (index_t i = view.begin() + begin; i < view.begin() + end; ++i) f(i);
  });
}

/// out[place(i)] += factor(i) * rows[i]. Columns go in whole vectors, whoever has them.
template <typename Scalar, typename Place, typename Factor>
void add_by_columns(const routed_rows<Scalar>& view, const Place& place, const Factor& factor, tokens_in<Scalar> rows,
                    tokens_out<Scalar> out, const executor_ref& executor) {
  constexpr index_t lanes = kernel::simd_width<Scalar>, fewest_vectors = 4;
  const index_t vectors = (out.cols() + lanes - 1) / lanes;
  const executor_ref threads = executor.for_work(2 * view.size() * out.cols());
  const index_t parts = std::clamp<index_t>(vectors / fewest_vectors, 1, threads.concurrency());
  threads.parallel_for(parts, [&](index_t part) {
    const index_t begin = vectors * part / parts * lanes;
    const index_t end = (std::min)(vectors * (part + 1) / parts * lanes, out.cols());
    for (index_t i = view.begin(); i < view.end(); ++i) {
      const Scalar* from = rows.data() + i * rows.outerStride();
      Scalar* to = out.data() + place(i) * out.outerStride();
      index_t c = begin;
      for (; c + lanes <= end; c += lanes) kernel::add_weighted(factor(i), kernel::load(from + c), lanes, to + c);
      if (c < end) kernel::add_weighted(factor(i), kernel::load_part(from + c, end - c, Scalar(0)), end - c, to + c);
    }
  });
}

}  // namespace detail

/// Writes the rows begin() .. end() of the view, as all below do with what has a row an assignment.
template <std::floating_point Scalar>
void gather_rows(const routed_rows<Scalar>& view, tokens_in<Scalar> x, tokens_out<Scalar> rows,
                 const executor_ref& executor) {
  detail::for_each_routed(view, x.cols(), executor, [&](index_t i) {
    kernel::copy_scaled(view.input_scale(i), x.data() + view.token(i) * x.outerStride(),
                        rows.data() + i * rows.outerStride(), x.cols());
  });
}

template <std::floating_point Scalar>
void add_rows(const routed_rows<Scalar>& view, tokens_in<Scalar> rows, tokens_out<Scalar> y,
              const executor_ref& executor) {
  detail::add_by_columns<Scalar>(
      view, [&](index_t i) { return view.target(i); }, [&](index_t i) { return view.weight(i); }, rows, y, executor);
}

/// The adjoint of add_rows. dweight may be null.
template <std::floating_point Scalar>
void weigh_rows(const routed_rows<Scalar>& view, tokens_in<Scalar> dy, tokens_in<Scalar> rows, tokens_out<Scalar> drows,
                Scalar* dweight, const executor_ref& executor) {
  detail::for_each_routed(view, 2 * dy.cols(), executor, [&](index_t i) {
    const Scalar* upstream = dy.data() + view.target(i) * dy.outerStride();
    kernel::copy_scaled(view.weight(i), upstream, drows.data() + i * drows.outerStride(), dy.cols());
    if (dweight != nullptr) dweight[i] = kernel::dot(upstream, rows.data() + i * rows.outerStride(), dy.cols());
  });
}

/// The adjoint of gather_rows. dinput_scale may be null.
template <std::floating_point Scalar>
void add_input_rows(const routed_rows<Scalar>& view, tokens_in<Scalar> x, tokens_in<Scalar> drows,
                    tokens_out<Scalar> dx, Scalar* dinput_scale, const executor_ref& executor) {
  detail::add_by_columns<Scalar>(
      view, [&](index_t i) { return view.token(i); }, [&](index_t i) { return view.input_scale(i); }, drows, dx,
      executor);
  if (dinput_scale == nullptr) return;
  detail::for_each_routed(view, x.cols(), executor, [&](index_t i) {
    dinput_scale[i] = kernel::dot(x.data() + view.token(i) * x.outerStride(), drows.data() + i * drows.outerStride(),
                                  x.cols());
  });
}

template <RoutedPlan Plan>
void dispatch(const Plan& plan, tokens_in<typename Plan::scalar> x, tokens_out<typename Plan::scalar> rows,
              const executor_ref& executor) {
  gather_rows(plan.routed(), x, rows, executor);
}

template <RoutedPlan Plan>
void combine(const Plan& plan, tokens_in<typename Plan::scalar> rows, tokens_out<typename Plan::scalar> y,
             const executor_ref& executor) {
  detail::clear_rows<typename Plan::scalar>(y, executor);
  add_rows(plan.routed(), rows, y, executor);
  detail::write_invalid<typename Plan::scalar>(plan, y);
}

template <RoutedPlan Plan>
void combine_backward(const Plan& plan, tokens_in<typename Plan::scalar> dy, tokens_in<typename Plan::scalar> rows,
                      tokens_out<typename Plan::scalar> drows, typename Plan::gradient& dplan,
                      const executor_ref& executor) {
  dplan.weight.resize(plan.rows());
  weigh_rows(plan.routed(), dy, rows, drows, dplan.weight.data(), executor);
}

template <RoutedPlan Plan>
void dispatch_backward(const Plan& plan, tokens_in<typename Plan::scalar> x, tokens_in<typename Plan::scalar> drows,
                       tokens_out<typename Plan::scalar> dx, typename Plan::gradient& dplan,
                       const executor_ref& executor) {
  const routed_rows<typename Plan::scalar> view = plan.routed();
  dplan.input_scale.resize(view.input_scales == nullptr ? 0 : plan.rows());
  add_input_rows(view, x, drows, dx, view.input_scales == nullptr ? nullptr : dplan.input_scale.data(), executor);
}

}  // namespace sluice::inline SLUICE_ISA
