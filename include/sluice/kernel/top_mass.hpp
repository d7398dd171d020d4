/// The largest scores of a row that together have a given mass, best first.
///
///   weights w [count], not negative, that order like the scores (a softmax of them does)
///   n scores are found such that their weights have a sum >= mass, or all `most` that are asked for
///
/// n may be a few more than are needed. A bound is lowered, by steps that grow, until what is at or above it has the
/// mass, and raised again by halves while it has; then only that is sorted. The order is top_k's.
#pragma once

#include <sluice/kernel/order.hpp>
#include <sluice/kernel/top_k.hpp>

#include <algorithm>
#include <bit>
#include <cstdint>

namespace sluice::inline SLUICE_ISA::kernel {

/// The sum of the weights that are at least `bound`.
template <typename Scalar>
Scalar mass_from(const Scalar* weights, index_t count, Scalar bound) noexcept {
  const simd_keys<Scalar> below(order_key(bound) - 1);
  const simd_keys<Scalar> nothing(ordered_bits<Scalar>(0));
  simd<Scalar> sum(Scalar(0));
  for (index_t i = 0; i < count; i += simd_width<Scalar>) {
    const index_t lanes = (std::min)(simd_width<Scalar>, count - i);
    const auto w = lanes == simd_width<Scalar> ? load(weights + i) : load_part(weights + i, lanes, Scalar(0));
    const auto bits = cast_bits<ordered_bits<Scalar>, Scalar>(w);
    sum += cast_bits<Scalar, ordered_bits<Scalar>>(select_lanes(order_keys<Scalar>(w) > below, bits, nothing));
  }
  return sum_lanes<Scalar>(sum);
}

/// ids[0..n), n returned: positions of the largest scores, best first. Needs 1 <= most <= count; room for `most` ids.
template <typename Scalar>
index_t top_mass(const Scalar* weights, const Scalar* scores, index_t count, Scalar mass, index_t most,
                 index_t* ids) noexcept {
  constexpr int halvings = 5;
  Scalar bound = number_of_key<Scalar>(largest_key(weights, count)), above = bound;
  for (Scalar step = Scalar(0.5); bound > Scalar(0) && mass_from(weights, count, bound) < mass; step *= step) {
    above = bound;
    bound *= step;
  }
  for (int i = 0; i < halvings && bound < above; ++i) {
    const Scalar middle = bound + (above - bound) / 2;
    (mass_from(weights, count, middle) < mass ? above : bound) = middle;
  }
  index_t n = 0;
  bool fits = true;
  const simd_keys<Scalar> below(order_key(bound) - 1);
  for_each_keys(weights, count, [&](const simd_keys<Scalar>& keys, index_t first) {
    std::uint64_t bits = lane_bits(keys > below);
    fits = n + std::popcount(bits) <= most;
    if (!fits) return true;
    for (; bits != 0; bits &= bits - 1) ids[n++] = first + std::countr_zero(bits);
    return false;
  });
  if (!fits) {
    top_k(scores, count, most, ids);
    return most;
  }
  std::sort(ids, ids + n, largest_first{scores});
  return n;
}

}  // namespace sluice::inline SLUICE_ISA::kernel
