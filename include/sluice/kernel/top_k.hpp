/// The k largest scores of a row, best first, under the promises of routing.
///
/// NaN counts as -infinity, +infinity is a value, equal scores: the lower index comes first.
///
/// Scores enter a sorted list one by one, but few get that far: whole vectors are compared with the worst of the list,
/// and for k <= 16 with a bound from the start. The row is dealt into 16 groups, lane by lane; the k-th largest of the
/// groups' maxima has k scores at or above it, so nothing below it can be chosen. Long rows are dealt into 32 for k >
/// 8, where the k-th of 16 would let too many pass. For k > 32 the k-th largest is found first, by counting.
#pragma once

#include <sluice/kernel/order.hpp>

#include <algorithm>
#include <bit>
#include <limits>
#include <numeric>

namespace sluice::inline SLUICE_ISA::kernel {

namespace detail {

inline constexpr index_t top_k_groups = 16;

/// An order key that at least k scores of the row reach; k <= Groups <= count.
template <index_t Groups, typename Scalar>
ordered_bits<Scalar> top_k_bound(const Scalar* scores, index_t count, index_t k) noexcept {
  using key = ordered_bits<Scalar>;
  constexpr index_t width = simd_width<Scalar>;
  constexpr index_t vectors = (Groups + width - 1) / width;
  constexpr index_t groups = vectors * width;
  simd<key> largest[as_size(vectors)];
  simd<key> above[as_size(vectors)];  // how many groups have a larger maximum
  SLUICE_UNROLL for (index_t v = 0; v < vectors; ++v) {
    largest[v] = simd<key>(-infinity_key<Scalar>);
    above[v] = simd<key>(key(0));
  }
  index_t i = 0;
  for (; i + groups <= count; i += groups) {
    SLUICE_UNROLL for (index_t v = 0; v < vectors; ++v) {
      largest[v] = (xsimd::max)(largest[v], order_keys<Scalar>(load(scores + i + v * width)));
    }
  }
  for_each_keys(scores + i, count - i, [&](const simd<key>& keys, index_t first) {
    SLUICE_UNROLL for (index_t v = 0; v < vectors; ++v) {
      if (v * width == first) largest[v] = (xsimd::max)(largest[v], keys);
    }
    return false;
  });
  key maxima[as_size(groups)];
  SLUICE_UNROLL for (index_t v = 0; v < vectors; ++v) store<key>(maxima + v * width, largest[v]);
  for (index_t g = 0; g < groups; ++g) {
    SLUICE_UNROLL for (index_t v = 0; v < vectors; ++v) {
      above[v] = select_lanes(simd<key>(maxima[g]) > largest[v], above[v] + simd<key>(key(1)), above[v]);
    }
  }
  // The k-th largest is the smallest that has fewer than k above it.
  const simd<key> never(-(std::numeric_limits<key>::max)());
  simd<key> negated = never;
  SLUICE_UNROLL for (index_t v = 0; v < vectors; ++v) {
    const auto is_among_k = above[v] < simd<key>(static_cast<key>(k));
    negated = (xsimd::max)(negated, select_lanes(is_among_k, simd<key>(key(0)) - largest[v], never));
  }
  return -largest_lane<key>(negated);
}

inline constexpr index_t longest_list = 32;

/// How many keys of a row are at least this one, which is above that of -infinity.
template <typename Scalar>
index_t count_from(const Scalar* scores, index_t count, ordered_bits<Scalar> least) noexcept {
  const simd_keys<Scalar> below(least - 1);
  index_t found = 0;
  for_each_keys(scores, count, [&](const simd_keys<Scalar>& keys, index_t) {
    found += std::popcount(lane_bits(keys > below));
    return false;
  });
  return found;
}

/// top_k for many: the key of the k-th is found by halving, then what comes before it is sorted.
template <typename Scalar>
void top_k_by_halving(const Scalar* scores, index_t count, index_t k, index_t* ids) noexcept {
  using key = ordered_bits<Scalar>;
  key low = -infinity_key<Scalar>, high = largest_key(scores, count) + 1;  // k or more from low on, fewer from high on
  index_t from_low = count, from_high = 0;
  while (from_low > k && high - 1 > low) {
    const key middle = std::midpoint(low, high);
    const index_t from_middle = count_from(scores, count, middle);
    (from_middle >= k ? low : high) = middle;
    (from_middle >= k ? from_low : from_high) = from_middle;
  }
  const bool all = from_low == k;  // else low is the key of several, of which the first are wanted
  index_t found = 0, equals = k - from_high;
  for (index_t i = 0; i < count && found < k; ++i) {
    const key own = order_key(scores[i]);
    if (own > low || (own == low && (all || equals-- > 0))) ids[found++] = i;
  }
  std::sort(ids, ids + k, largest_first{scores});
}

}  // namespace detail

/// ids[0..k): positions of the k largest scores, best first. Needs k <= count.
template <typename Scalar>
void top_k(const Scalar* scores, index_t count, index_t k, index_t* ids) noexcept {
  using key = ordered_bits<Scalar>;
  if (k == 0) return;
  if (k > detail::longest_list) return detail::top_k_by_halving(scores, count, k, ids);
  const bool has_bound = k <= detail::top_k_groups && count > detail::top_k_groups;
  constexpr index_t groups = detail::top_k_groups;
  const key bound = !has_bound                            ? -infinity_key<Scalar>
                    : k > groups / 2 && count > 8 * groups ? detail::top_k_bound<2 * groups>(scores, count, k)
                                                           : detail::top_k_bound<groups>(scores, count, k);
  key threshold = bound - 1;  // what exceeds this may enter: at first also what equals the bound
  index_t found = 0;
  for_each_keys(scores, count, [&](const simd<key>& keys, index_t first) {
    std::uint64_t bits = lane_bits(keys > simd<key>(threshold));
    if (count - first < simd_width<Scalar>) bits &= (std::uint64_t(1) << (count - first)) - 1;  // without the padding
    for (; bits != 0; bits &= bits - 1) {
      const index_t i = first + std::countr_zero(bits);
      const key own = order_key(scores[i]);
      if (own <= threshold) continue;
      index_t place = found < k ? found++ : k - 1;
      for (; place > 0 && own > order_key(scores[ids[place - 1]]); --place) ids[place] = ids[place - 1];
      ids[place] = i;
      if (found == k) threshold = order_key(scores[ids[k - 1]]);
    }
    return false;
  });
}

}  // namespace sluice::inline SLUICE_ISA::kernel
