/// Codes that may be the best of one row, by a pass over the keys as they lie: what the search of a single row begins
/// with.
///
///   s  a score, summed in any order      e  >= |s - the score as kernel/best_code.hpp sums it|
///   code c stays unless some other has  s' - e' > s + e
///
/// Packing the keys into panels costs several times what one row's products cost. Here lanes go along D, and the best
/// code, with whatever rounding cannot tell from it, is left for the search, which decides by its own sums: no bit of
/// what it finds is another. With Z the sum over i of |x_i| max |key_i|, the maximum over a few codes, both sums are
/// within (D + 1) epsilon (Z + |offset|) of each other; e is twice that, and what denormal numbers may lose. A search
/// with too many likely codes, or with scores that are not finite, is not shortened.
#pragma once

#include <sluice/kernel/code_panels.hpp>
#include <sluice/kernel/grouped_gemm.hpp>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

namespace sluice::inline SLUICE_ISA::kernel {

/// Codes of one row with the most that their scores can be, in order.
template <typename Scalar>
class likely_codes {
public:
  static constexpr index_t most = 32;

  index_t size() const noexcept { return count_; }
  index_t operator[](index_t i) const noexcept { return ids_[as_size(i)]; }

  /// Codes first .. first + count - 1, a lane each, with the least and the most that their scores can be; false if
  /// there are too many.
  bool offer(index_t first, index_t count, const simd<Scalar>& floors, const simd<Scalar>& ceilings) noexcept {
    auto above = lane_bits(order_keys<Scalar>(ceilings) > simd_keys<Scalar>(order_key(floor_) - 1));
    above &= (std::uint64_t(2) << (count - 1)) - 1;
    if (above == 0) return true;
    Scalar low[as_size(simd_width<Scalar>)], high[as_size(simd_width<Scalar>)];
    store<Scalar>(low, floors);
    store<Scalar>(high, ceilings);
    for (; above != 0; above &= above - 1) {
      const index_t l = std::countr_zero(above);
      if (high[l] < floor_) continue;
      floor_ = (std::max)(floor_, low[l]);
      if (count_ == most) settle();
      if (count_ == most) return false;
      ids_[as_size(count_)] = first + l;
      ceilings_[as_size(count_++)] = high[l];
    }
    return true;
  }
  /// Only those stay that may still be the best.
  void settle() noexcept {
    index_t kept = 0;
    for (index_t i = 0; i < count_; ++i) {
      if (ceilings_[as_size(i)] < floor_) continue;
      ids_[as_size(kept)] = ids_[as_size(i)];
      ceilings_[as_size(kept++)] = ceilings_[as_size(i)];
    }
    count_ = kept;
  }

private:
  index_t ids_[as_size(most)];
  Scalar ceilings_[as_size(most)];
  index_t count_ = 0;
  Scalar floor_ = -(std::numeric_limits<Scalar>::max)();
};

namespace detail {

/// AreFar: keys are worth a prefetch.
template <bool AreFar, typename Scalar>
bool find_likely_codes(const Scalar* x, const code_keys<Scalar>& k, likely_codes<Scalar>& found) noexcept {
  using vector = simd<Scalar>;
  using bits = ordered_bits<Scalar>;
  constexpr index_t lanes = simd_width<Scalar>, together = tile_rows > 8 ? 16 : 8;
  const vector share(2 * static_cast<Scalar>(k.width + 4) * std::numeric_limits<Scalar>::epsilon());
  const vector least(static_cast<Scalar>(k.width + 4) * (std::numeric_limits<Scalar>::min)());
  const simd_keys<Scalar> largest_size(order_key((std::numeric_limits<Scalar>::max)() / 4));
  for (index_t first = 0; first < k.count; first += together) {
    const Scalar* keys[as_size(together)];
    for (index_t j = 0; j < together; ++j) keys[j] = k.keys + (std::min)(first + j, k.count - 1) * k.stride;
    vector sums[as_size(together)], sizes(Scalar(0));
    SLUICE_UNROLL for (index_t j = 0; j < together; ++j) sums[j] = vector(Scalar(0));
    const auto meet = [&](const auto& load_lanes, index_t d) {
      const vector row = load_lanes(x + d);
      vector largest(Scalar(0));
      SLUICE_UNROLL for (index_t j = 0; j < together; ++j) {
        vector key = load_lanes(keys[j] + d);
        if constexpr (AreFar) prefetch(keys[j] + together * k.stride + d);
        keep_in_register<Scalar>(key);
        largest = (xsimd::max)(largest, (xsimd::abs)(key));
        sums[j] = multiply_add<Scalar>(row, key, sums[j]);
      }
      sizes = multiply_add<Scalar>((xsimd::abs)(row), largest, sizes);
    };
    index_t d = 0;
    for (; d + lanes <= k.width; d += lanes) meet([](const Scalar* from) { return load(from); }, d);
    if (d < k.width) meet([&](const Scalar* from) { return load_part(from, k.width - d, Scalar(0)); }, d);
    const vector size(sum_lanes<Scalar>(sizes));
    for (index_t j = 0; j < together && first + j < k.count; j += lanes) {
      const index_t count = (std::min)(lanes, k.count - first - j);
      vector columns[as_size(lanes)];
      SLUICE_UNROLL for (index_t l = 0; l < lanes; ++l) columns[l] = sums[j + l];
      transpose<Scalar>(columns);
      SLUICE_UNROLL for (index_t l = 1; l < lanes; ++l) columns[0] += columns[l];
      const vector offset = k.offsets == nullptr ? vector(Scalar(0))
                            : count == lanes     ? load(k.offsets + first + j)
                                                 : load_part(k.offsets + first + j, count, Scalar(0));
      const vector score = columns[0] + offset, whole = size + (xsimd::abs)(offset);
      // A size that NaN has hidden leaves NaN in a score. As integers, sizes order as they are, NaN above all.
      const auto magnitude =
          (xsimd::max)(magnitudes<Scalar>(cast_bits<bits>(score)), magnitudes<Scalar>(cast_bits<bits>(whole)));
      if (lane_bits(magnitude > largest_size) != 0) return false;
      const vector error = multiply_add<Scalar>(share, whole, least);
      if (!found.offer(first + j, count, score - error, score + error)) return false;
    }
  }
  found.settle();
  return true;
}

}  // namespace detail

/// The likely codes of a row; false if the search cannot be shortened.
template <typename Scalar>
bool find_likely_codes(const Scalar* x, const code_keys<Scalar>& k, likely_codes<Scalar>& found) noexcept {
  return k.count * k.width * index_t(sizeof(Scalar)) > second_level_bytes
             ? detail::find_likely_codes<true>(x, k, found)
             : detail::find_likely_codes<false>(x, k, found);
}

}  // namespace sluice::inline SLUICE_ISA::kernel
