/// Softmax, log-sum-exp and top-k of one row of scores, under the promises of routing.
///
/// The row maximum is subtracted first. +infinity is a value: a row with infinite logits shares its mass among them. NaN
/// anywhere in a row gives NaN weights; in comparisons it counts as -infinity. Equal scores: the lower index comes first.
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/core/types.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA::kernel {

/// Position of the largest number; the lowest position among equals, 0 if all are NaN.
template <typename Scalar>
index_t arg_max(const Scalar* values, index_t count) noexcept {
  index_t best = 0;
  for (index_t i = 1; i < count; ++i)
    if (order_key(values[i]) > order_key(values[best])) best = i;
  return best;
}

/// out[i] = exp(in[i] - max) for i < count; returns the maximum and the sum. in and out may be the same.
template <typename Scalar>
struct exponentials {
  Scalar maximum;
  Scalar sum;
};
template <typename Scalar>
exponentials<Scalar> exponentiate(const Scalar* in, Scalar* out, index_t count) noexcept {
  const Scalar maximum = in[arg_max(in, count)];
  const auto top = order_key(maximum);
  Scalar sum = 0;
  for (index_t i = 0; i < count; ++i) {
    // Equal to the maximum means exp(0), also where both are infinite and the difference would be NaN.
    out[i] = !is_nan(in[i]) && order_key(in[i]) == top ? Scalar(1) : std::exp(in[i] - maximum);
    sum += out[i];
  }
  return {maximum, sum};
}

template <typename Scalar>
void softmax(const Scalar* in, Scalar* out, index_t count) noexcept {
  const auto e = exponentiate(in, out, count);
  for (index_t i = 0; i < count; ++i) out[i] /= e.sum;
}

/// log sum exp of a row; count >= 1.
template <typename Scalar>
Scalar log_sum_exp(const Scalar* in, index_t count) noexcept {
  const Scalar maximum = in[arg_max(in, count)];
  Scalar sum = 0;
  for (index_t i = 0; i < count; ++i) sum += order_key(in[i]) == order_key(maximum) ? Scalar(1) : std::exp(in[i] - maximum);
  return maximum + std::log(sum);
}

/// ids[0..k): positions of the k largest scores, best first. Needs k <= count.
template <typename Scalar>
void top_k(const Scalar* scores, index_t count, index_t k, index_t* ids) noexcept {
  if (k == 0) return;
  index_t found = 0;
  for (index_t i = 0; i < count; ++i) {
    const auto key = order_key(scores[i]);
    if (found == k && key <= order_key(scores[ids[k - 1]])) continue;
    index_t place = found < k ? found++ : k - 1;
    for (; place > 0 && key > order_key(scores[ids[place - 1]]); --place) ids[place] = ids[place - 1];
    ids[place] = i;
  }
}

}  // namespace sluice::inline SLUICE_ISA::kernel
