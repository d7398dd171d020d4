/// Comparisons of whole vectors under the order of routing: the vector form of core/numeric.hpp.
///
/// order_keys maps numbers to integers that order like them, NaN as low as -infinity and both zeros equal, without a
/// comparison of floating-point numbers that a compiler flag could spoil. A row whose length is no multiple of the
/// vector's is padded with -infinity in registers: nothing is read past its end, and no padding comes before a number
/// of the row.
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/kernel/simd.hpp>

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstdint>
#include <limits>

namespace sluice::inline SLUICE_ISA::kernel {

/// A vector of order keys.
template <typename Scalar>
using simd_keys = simd<ordered_bits<Scalar>>;

/// The order key of +infinity; -infinity and NaN have its negative.
template <typename Scalar>
inline constexpr ordered_bits<Scalar> infinity_key = sluice::detail::infinity_bits<Scalar>;

namespace detail {

template <typename Scalar>
simd_keys<Scalar> magnitudes(const simd_keys<Scalar>& bits) noexcept {
  return bits & simd_keys<Scalar>((std::numeric_limits<ordered_bits<Scalar>>::max)());
}

}  // namespace detail

/// Lanes that hold NaN.
template <typename Scalar>
xsimd::batch_bool<ordered_bits<Scalar>> nan_lanes(const simd<Scalar>& v) noexcept {
  return detail::magnitudes<Scalar>(cast_bits<ordered_bits<Scalar>, Scalar>(v)) >
         simd_keys<Scalar>(infinity_key<Scalar>);
}

/// order_key() of every lane.
template <typename Scalar>
simd_keys<Scalar> order_keys(const simd<Scalar>& v) noexcept {
  using keys = simd_keys<Scalar>;
  const keys bits = cast_bits<ordered_bits<Scalar>, Scalar>(v);
  const keys zero(ordered_bits<Scalar>(0));
  const keys magnitude = detail::magnitudes<Scalar>(bits);
  const keys key = select_lanes(bits < zero, zero - magnitude, magnitude);
  return select_lanes(magnitude > keys(infinity_key<Scalar>), keys(-infinity_key<Scalar>), key);
}

/// Lanes where a is greater than b; where a is NaN it is not. b holds no NaN.
template <typename Scalar>
auto greater_lanes(const simd<Scalar>& a, const simd<Scalar>& b) noexcept {
#if defined(__FAST_MATH__)
  return order_keys<Scalar>(a) > order_keys<Scalar>(b);
#else
  return a > b;
#endif
}

/// Lane by lane a where a comparison of numbers, or of their bits, holds, b elsewhere. Bits are copied.
template <typename Scalar>
simd<Scalar> pick_lanes(const xsimd::batch_bool<Scalar>& lanes, const simd<Scalar>& a, const simd<Scalar>& b) noexcept {
  return xsimd::select(lanes, a, b);
}
template <typename Scalar>
simd<Scalar> pick_lanes(const xsimd::batch_bool<ordered_bits<Scalar>>& lanes, const simd<Scalar>& a,
                        const simd<Scalar>& b) noexcept {
  using bits = ordered_bits<Scalar>;
  return cast_bits<Scalar>(select_lanes<bits>(lanes, cast_bits<bits>(a), cast_bits<bits>(b)));
}

/// The number that has this order key; -infinity for that of NaN, +0 for that of -0.
template <typename Scalar>
Scalar number_of_key(ordered_bits<Scalar> key) noexcept {
  const Scalar magnitude = std::bit_cast<Scalar>(key < 0 ? -key : key);
  return key < 0 ? -magnitude : magnitude;
}

/// number_of_key() of every lane.
template <typename Scalar>
simd<Scalar> numbers_of_keys(const simd_keys<Scalar>& keys) noexcept {
  ordered_bits<Scalar> own[as_size(simd_width<Scalar>)];
  Scalar numbers[as_size(simd_width<Scalar>)];
  store<ordered_bits<Scalar>>(own, keys);
  SLUICE_UNROLL for (index_t i = 0; i < simd_width<Scalar>; ++i) numbers[i] = number_of_key<Scalar>(own[i]);
  return load(numbers);
}

/// f(order keys, position of the first lane) for every vector of a row, in order, until f returns true.
template <typename Scalar, typename F>
void for_each_keys(const Scalar* values, index_t count, F&& f) noexcept {
  constexpr index_t width = simd_width<Scalar>;
  index_t i = 0;
  for (; i + width <= count; i += width)
    if (f(order_keys<Scalar>(load(values + i)), i)) return;
  if (i < count)
    f(order_keys<Scalar>(load_part(values + i, count - i, number_of_key<Scalar>(-infinity_key<Scalar>))), i);
}

/// The largest lane.
template <std::integral Int>
Int largest_lane(const simd<Int>& v) noexcept {
  Int lanes[simd_width<Int>];
  store<Int>(lanes, v);
  SLUICE_UNROLL for (index_t half = simd_width<Int> / 2; half > 0; half /= 2) {
    SLUICE_UNROLL for (index_t i = 0; i < half; ++i) lanes[i] = (std::max)(lanes[i], lanes[i + half]);
  }
  return lanes[0];
}

/// Order key of the largest number of a row; that of -infinity for an empty row and one of NaN.
template <typename Scalar>
ordered_bits<Scalar> largest_key(const Scalar* values, index_t count) noexcept {
  simd_keys<Scalar> best(-infinity_key<Scalar>);
  for_each_keys(values, count, [&](const simd_keys<Scalar>& keys, index_t) {
    best = (xsimd::max)(best, keys);
    return false;
  });
  return largest_lane<ordered_bits<Scalar>>(best);
}

/// Position of the largest number; the lowest position among equals, 0 if all are NaN.
template <typename Scalar>
index_t arg_max(const Scalar* values, index_t count) noexcept {
  const simd_keys<Scalar> largest(largest_key(values, count));
  index_t best = 0;
  for_each_keys(values, count, [&](const simd_keys<Scalar>& keys, index_t first) {
    const std::uint64_t bits = lane_bits(keys == largest);
    if (bits != 0) best = first + std::countr_zero(bits);
    return bits != 0;
  });
  return best;
}

}  // namespace sluice::inline SLUICE_ISA::kernel
