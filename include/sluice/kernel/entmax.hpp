/// 1.5-entmax of one row of scores: a softmax that gives scores far below the others exactly zero.
///
///   p_i = (s_i / 2 - tau)_+^2,  tau such that sum p = 1            the largest share is never zero
///   ds = q (dp - <q, dp> / sum q),  q = sqrt(p)
///
/// tau is found by Newton's method on sum p - 1, convex and falling, from the left: it rises to the root and stops when
/// it no longer does, at full precision, with neither a sort nor scratch. Equal scores have equal shares. Infinite
/// scores are values: those of +infinity share all, one of -infinity has nothing beside a finite one. NaN anywhere in a
/// row gives NaN shares. Nothing past a row is read or written. Peters, Niculae, Martins 2019, "Sparse
/// Sequence-to-Sequence Models", arXiv:1905.05702.
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/kernel/order.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <cmath>

namespace sluice::inline SLUICE_ISA::kernel {

/// out may be in.
template <typename Scalar>
void entmax15(const Scalar* in, Scalar* out, index_t count) noexcept {
  constexpr index_t width = simd_width<Scalar>;
  const auto largest = largest_key(in, count);
  const Scalar maximum = number_of_key<Scalar>(largest);
  if (any_nan(in, count)) return static_cast<void>(std::fill_n(out, count, quiet_nan<Scalar>()));
  if (!is_finite(maximum)) {
    index_t equals = 0;
    for (index_t i = 0; i < count; ++i) equals += order_key(in[i]) == largest;
    for (index_t i = 0; i < count; ++i)
      out[i] = order_key(in[i]) == largest ? 1 / static_cast<Scalar>(equals) : Scalar(0);
    return;
  }
  const simd<Scalar> top(maximum), half(Scalar(0.5)), zero(Scalar(0));
  const Scalar nothing = number_of_key<Scalar>(-infinity_key<Scalar>);
  // Distances to the maximum, at most 0; the share of one at -1 or below is zero.
  const auto excess = [&](index_t i, const simd<Scalar>& tau) {
    const simd<Scalar> s = i + width <= count ? load(in + i) : load_part(in + i, count - i, nothing);
    return (xsimd::max)(zero, (s - top) * half - tau);
  };
  Scalar tau = -1;
  constexpr int most_steps = 64;  // a square root's worth of halvings, then a few: far fewer are needed
  for (int step = 0; step < most_steps; ++step) {
    simd<Scalar> squares(Scalar(0)), sum(Scalar(0));
    for (index_t i = 0; i < count; i += width) {
      const simd<Scalar> q = excess(i, simd<Scalar>(tau));
      squares = multiply_add<Scalar>(q, q, squares);
      sum += q;
    }
    const Scalar next = tau + (sum_lanes<Scalar>(squares) - 1) / (2 * sum_lanes<Scalar>(sum));
    if (!(next > tau)) break;
    tau = next;
  }
  for (index_t i = 0; i < count; i += width) {
    const simd<Scalar> q = excess(i, simd<Scalar>(tau)), p = q * q;
    i + width <= count ? store<Scalar>(out + i, p) : store_part<Scalar>(out + i, p, count - i);
  }
}

/// dscores += what shares p and their gradients mean for the scores.
template <typename Scalar>
void add_entmax15_gradient(const Scalar* p, const Scalar* dp, index_t count, Scalar* dscores) noexcept {
  Scalar inner = 0, sum = 0;
  for (index_t i = 0; i < count; ++i) {
    const Scalar q = std::sqrt(p[i]);
    inner += q * dp[i];
    sum += q;
  }
  for (index_t i = 0; i < count; ++i)
    if (p[i] > Scalar(0)) dscores[i] += std::sqrt(p[i]) * (dp[i] - inner / sum);
}

}  // namespace sluice::inline SLUICE_ISA::kernel
