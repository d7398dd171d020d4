/// Which experts come near the best one: what SparseMixer chooses among.
///
///   e is a near rival of the largest logit m  where  (m - L[e]) / max(|L[e]|, m) <= 2 jitter
///
/// Where both are 0 there is no difference. Of an infinite largest its equals are the rivals: others add
/// exp(-infinity) = 0 to a sum. Liu et al. 2023, arXiv:2310.00811.
#pragma once

#include <sluice/kernel/order.hpp>

#include <bit>
#include <cmath>
#include <limits>

namespace sluice::inline SLUICE_ISA::kernel {

template <FloatOrDouble Scalar>
bool is_infinite_key(ordered_bits<Scalar> key) {
  return key == infinity_key<Scalar> || key == -infinity_key<Scalar>;
}

template <FloatOrDouble Scalar>
bool is_near_rival(Scalar logit, Scalar largest, Scalar jitter) {
  if (const auto top = order_key(largest); is_infinite_key<Scalar>(top)) return order_key(logit) == top;
  const Scalar size = (std::abs)(logit);
  const Scalar scale = size > largest ? size : largest;
  return !(scale > Scalar(0)) || !((largest - logit) / scale > 2 * jitter);
}

/// f(e) for the near rivals of the largest, in order. Where 2 jitter < 1 those of a finite largest are those from a
/// bound on, and whole vectors below it are passed over; the bound is put a little lower than it is, for rounding, and
/// what it lets through is tested.
template <FloatOrDouble Scalar, typename F>
void for_each_near_rival(const Scalar* logits, index_t count, Scalar largest, Scalar jitter, F&& f) {
  constexpr Scalar slack = 16 * std::numeric_limits<Scalar>::epsilon();
  const Scalar left = 1 - 2 * jitter;
  const Scalar bound = largest > Scalar(0) ? largest * left : largest / left;
  const bool has_bound = left > slack && !is_infinite_key<Scalar>(order_key(largest));
  const simd_keys<Scalar> below((has_bound ? order_key(bound - slack * (std::abs)(bound)) : -infinity_key<Scalar>)-1);
  for_each_keys(logits, count, [&](const simd_keys<Scalar>& keys, index_t first) {
    std::uint64_t bits = lane_bits(keys > below);
    if (count - first < simd_width<Scalar>) bits &= (std::uint64_t(1) << (count - first)) - 1;  // without the padding
    for (; bits != 0; bits &= bits - 1) {
      const index_t e = first + std::countr_zero(bits);
      if (is_near_rival(logits[e], largest, jitter)) f(e);
    }
    return false;
  });
}

}  // namespace sluice::inline SLUICE_ISA::kernel
