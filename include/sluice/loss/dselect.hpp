/// Losses of DSelect-k on its selectors r [N, k·E]: entropy, which makes them choose, and the reachability penalty.
///
///   entropy        value = - sum over rows, i, e of r log(r + 1e-6)        dr = -log(r + 1e-6) - r / (r + 1e-6)
///   reachability   value = sum over rows, i of 1 / R,  R = sum over e of r[i,e]     dr[i,e] = -1 / R^2
///                  nothing if E is a power of two: then R = 1
///
/// Both are sums over rows (N = 1 for a static gate, else one row a token), as published; mean_over_rows divides by the
/// number of rows that count, which keeps a coefficient's meaning when the batch grows. Padding and NaN rows are left
/// out. 1/R is infinite where all mass lies on codes without an expert. Below smallest_reach it goes on as its tangent,
/// so the value and the pull back stay finite. Coefficient 0: nothing is evaluated.
///
/// The coefficient of the entropy is a schedule, any callable from the step of the routing context to a number;
/// published: the constant 1e-6. A ramp that starts at 0 lets the experts learn before the selectors decide.
/// Hazimeh et al. 2021, "DSelect-k", arXiv:2106.03760.
#pragma once

#include <sluice/core/context.hpp>
#include <sluice/loss/common.hpp>
#include <sluice/loss/selector_signals.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>

namespace sluice::inline SLUICE_ISA {

/// A coefficient that moves from `first` to `last` in a straight line over `steps` training steps after step `begin`.
struct coefficient_ramp {
  double first = 1e-6;
  double last = first;
  index_t begin = 0;
  index_t steps = 0;

  double operator()(index_t step) const noexcept {
    if (step < begin) return first;
    if (step - begin >= steps) return last;
    return first + (last - first) * static_cast<double>(step - begin) / static_cast<double>(steps);
  }
};

namespace detail {

/// f(row) -> number for every row that counts, spread over the executor; returns the sum of the numbers, in order.
template <std::floating_point Scalar, typename F>
double sum_over_rows(const selector_signals<Scalar>& seen, const routing_context<Scalar>& context,
                     selector_gradients<Scalar>& gradients, F&& f) {
  gradients.row_scratch.assign(seen.rows(), 0);
  context.executor.parallel_each(seen.rows(), 32 * seen.experts, [&](index_t n) {
    if (seen.counted[n]) gradients.row_scratch[n] = f(n);
  });
  double sum = 0;
  for (const double value : gradients.row_scratch) sum += value;
  return sum;
}

/// What a row weighs: 1, or 1 / the number of rows that count.
template <std::floating_point Scalar>
double row_weight(const selector_signals<Scalar>& seen, bool mean) {
  const auto count = std::count(seen.counted.begin(), seen.counted.end(), std::uint8_t(1));
  return mean && count > 0 ? 1 / static_cast<double>(count) : 1;
}

}  // namespace detail

template <typename Schedule = coefficient_ramp>
struct dselect_entropy {
  Schedule coefficient{};
  bool mean_over_rows = false;

  template <std::floating_point Scalar, typename Plan>
  Scalar operator()(const selector_signals<Scalar>& seen, const Plan&, const routing_context<Scalar>& context,
                    selector_gradients<Scalar>& gradients) const {
    constexpr double epsilon = 1e-6;
    const double scale = coefficient(context.step) * detail::row_weight(seen, mean_over_rows);
    detail::check_coefficient(scale);
    if (scale == 0) return 0;
    const double sum = detail::sum_over_rows(seen, context, gradients, [&](index_t n) {
      double value = 0;
      for (index_t j = 0; j < seen.selectors.cols(); ++j) {
        const auto r = static_cast<double>(seen.selectors(n, j));
        const double log = std::log(r + epsilon);
        value -= r * log;
        gradients.selectors(n, j) += static_cast<Scalar>(scale * (-log - r / (r + epsilon)));
      }
      return value;
    });
    return static_cast<Scalar>(scale * sum);
  }
};

struct dselect_reachability {
  double coefficient = 1;
  double smallest_reach = 1e-4;
  bool mean_over_rows = false;

  template <std::floating_point Scalar, typename Plan>
  Scalar operator()(const selector_signals<Scalar>& seen, const Plan&, const routing_context<Scalar>& context,
                    selector_gradients<Scalar>& gradients) const {
    const index_t experts = seen.experts;
    const bool all_reachable = (experts & (experts - 1)) == 0;
    const double scale = coefficient * detail::row_weight(seen, mean_over_rows);
    detail::check_coefficient(scale);
    if (!is_above(smallest_reach, 0))
      throw_invalid("dselect_reachability needs a smallest reach > 0, not ", smallest_reach);
    if (all_reachable || scale == 0) return 0;
    const double sum = detail::sum_over_rows(seen, context, gradients, [&](index_t n) {
      double value = 0;
      for (index_t i = 0; i < seen.count(); ++i) {
        double reach = 0;
        for (index_t e = 0; e < experts; ++e) reach += static_cast<double>(seen.selector(n, i)[e]);
        const double bounded = (std::max)(reach, smallest_reach);
        const double slope = -1 / (bounded * bounded);
        value += 1 / bounded + slope * (reach - bounded);
        for (index_t e = 0; e < experts; ++e)
          gradients.selectors(n, i * experts + e) += static_cast<Scalar>(scale * slope);
      }
      return value;
    });
    return static_cast<Scalar>(scale * sum);
  }
};

}  // namespace sluice::inline SLUICE_ISA
