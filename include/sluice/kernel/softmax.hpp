/// Softmax and log-sum-exp of one row of scores, under the promises of routing.
///
/// The row maximum is subtracted first. +infinity is a value: a row with infinite logits shares its mass among them.
/// NaN anywhere in a row gives NaN weights; in comparisons it counts as -infinity. An exponential below the smallest
/// normal number is 0. The result of a row depends on its numbers only; nothing past it is read or written.
#pragma once

#include <sluice/kernel/order.hpp>

#include <bit>
#include <cmath>

namespace sluice::inline SLUICE_ISA::kernel {

template <typename Scalar>
struct exponentials {
  Scalar maximum;  ///< -infinity if all are NaN
  Scalar sum;
};

namespace detail {

/// exp(v - maximum), lane by lane; `top` has the order keys of the maximum.
template <typename Scalar>
simd<Scalar> exponential(const simd<Scalar>& v, const simd_keys<Scalar>& top, const simd<Scalar>& maximum) noexcept {
  using bits = ordered_bits<Scalar>;
  const auto power = cast_bits<bits, Scalar>(xsimd::exp(v - maximum));
  // Equal to the maximum means exp(0), also where both are infinite and the difference would be NaN.
  const auto capped = select_lanes(order_keys<Scalar>(v) == top, simd<bits>(std::bit_cast<bits>(Scalar(1))), power);
  const simd<bits> nan(std::bit_cast<bits>(quiet_nan<Scalar>()));
  return cast_bits<Scalar, bits>(select_lanes(nan_lanes<Scalar>(v), nan, capped));
}

/// put(exponentials, position, number of lanes) for every vector of exp(in[i] - max), in order; returns maximum and
/// sum.
template <typename Scalar, typename Put>
exponentials<Scalar> for_each_exponential(const Scalar* in, index_t count, Put&& put) noexcept {
  constexpr index_t width = simd_width<Scalar>;
  const ordered_bits<Scalar> largest = largest_key(in, count);
  const simd_keys<Scalar> top(largest);
  const Scalar maximum = number_of_key<Scalar>(largest);
  const simd<Scalar> subtracted(maximum);
  simd<Scalar> sum(Scalar(0));
  index_t i = 0;
  for (; i + width <= count; i += width) {
    const simd<Scalar> e = exponential<Scalar>(load(in + i), top, subtracted);
    put(e, i, width);
    sum += e;
  }
  if (i < count) {
    Scalar rest[as_size(width)] = {};
    store_part<Scalar>(rest, exponential<Scalar>(load_part(in + i, count - i, maximum), top, subtracted), count - i);
    const simd<Scalar> e = load(rest);
    put(e, i, count - i);
    sum += e;
  }
  return {maximum, sum_lanes<Scalar>(sum)};
}

}  // namespace detail

/// out[i] = exp(in[i] - max) for i < count; returns the maximum and the sum. in and out may be the same.
template <typename Scalar>
exponentials<Scalar> exponentiate(const Scalar* in, Scalar* out, index_t count) noexcept {
  return detail::for_each_exponential(in, count, [out](const simd<Scalar>& e, index_t i, index_t lanes) {
    lanes == simd_width<Scalar> ? store<Scalar>(out + i, e) : store_part<Scalar>(out + i, e, lanes);
  });
}

template <typename Scalar>
void softmax(const Scalar* in, Scalar* out, index_t count) noexcept {
  constexpr index_t width = simd_width<Scalar>;
  const auto e = exponentiate(in, out, count);
  const simd<Scalar> sum(e.sum);
  index_t i = 0;
  for (; i + width <= count; i += width) store<Scalar>(out + i, load(out + i) / sum);
  if (i < count) store_part<Scalar>(out + i, load_part(out + i, count - i, Scalar(0)) / sum, count - i);
}

/// The maximum and the sum alone; count >= 1.
template <typename Scalar>
exponentials<Scalar> sum_exponentials(const Scalar* in, index_t count) noexcept {
  return detail::for_each_exponential(in, count, [](const simd<Scalar>&, index_t, index_t) {});
}

/// log sum exp of a row; count >= 1.
template <typename Scalar>
Scalar log_sum_exp(const Scalar* in, index_t count) noexcept {
  const auto e = sum_exponentials(in, count);
  return e.maximum + std::log(e.sum);
}

}  // namespace sluice::inline SLUICE_ISA::kernel
