/// Comparisons of floating-point numbers that hold under every compiler flag.
///
/// -ffast-math lets a compiler delete `x != x` and std::isnan, so nothing here compares a floating-point value that may
/// be NaN: the bits are read as integers. The order is the one that routing promises: NaN counts as -infinity, -0
/// equals +0, +infinity is a value like any other.
#pragma once

#include <sluice/core/types.hpp>

#include <concepts>
#include <cstring>
#include <limits>
#include <type_traits>

namespace sluice::inline SLUICE_ISA {

template <std::floating_point Scalar>
using ordered_bits = std::conditional_t<sizeof(Scalar) == 4, std::int32_t, std::int64_t>;

namespace detail {

template <std::floating_point Scalar>
ordered_bits<Scalar> bits_of(const Scalar& value) noexcept {
  static_assert(sizeof(Scalar) == 4 || sizeof(Scalar) == 8, "sluice: float and double only");
  ordered_bits<Scalar> bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

/// The bits of +infinity; only NaN has larger ones, but for the sign.
template <std::floating_point Scalar>
inline constexpr auto infinity_bits = ordered_bits<Scalar>(sizeof(Scalar) == 4 ? 0x7f800000 : 0x7ff0000000000000);

}  // namespace detail

/// True for NaN of either sign, whatever the compiler assumes about NaN.
template <std::floating_point Scalar>
bool is_nan(const Scalar& value) noexcept {
  using bits_t = ordered_bits<Scalar>;
  return (detail::bits_of(value) & (std::numeric_limits<bits_t>::max)()) > detail::infinity_bits<Scalar>;
}

/// An integer that orders like the number: a < b exactly if order_key(a) < order_key(b), NaN lowest together with
/// -infinity, and both zeros equal.
template <std::floating_point Scalar>
ordered_bits<Scalar> order_key(const Scalar& value) noexcept {
  using bits_t = ordered_bits<Scalar>;
  const bits_t bits = detail::bits_of(value);
  const bits_t magnitude = bits & (std::numeric_limits<bits_t>::max)();
  if (magnitude > detail::infinity_bits<Scalar>) return -detail::infinity_bits<Scalar>;
  return bits < 0 ? -magnitude : magnitude;
}

/// Orders positions by their values: the largest first, the lower position among equals, NaN last.
template <std::floating_point Scalar>
struct largest_first {
  const Scalar* values;

  bool operator()(index_t a, index_t b) const noexcept {
    const auto key_a = order_key(values[a]), key_b = order_key(values[b]);
    return key_a != key_b ? key_a > key_b : a < b;
  }
};
template <typename Scalar>
largest_first(const Scalar*) -> largest_first<Scalar>;

/// True unless the value is NaN or infinite.
template <std::floating_point Scalar>
bool is_finite(const Scalar& value) noexcept {
  return (detail::bits_of(value) & (std::numeric_limits<ordered_bits<Scalar>>::max)()) < detail::infinity_bits<Scalar>;
}

/// What options are asked; NaN and infinity are refused, whatever the compiler assumes about them.
template <std::floating_point Scalar>
bool is_at_least(const Scalar& value, std::type_identity_t<Scalar> low) noexcept {
  return is_finite(value) && value >= low;
}
template <std::floating_point Scalar>
bool is_above(const Scalar& value, std::type_identity_t<Scalar> low) noexcept {
  return is_finite(value) && value > low;
}
template <std::floating_point Scalar>
bool is_between(const Scalar& value, std::type_identity_t<Scalar> low, std::type_identity_t<Scalar> high) noexcept {
  return is_at_least(value, low) && value <= high;
}

/// A quiet NaN that no compiler flag can fold away.
template <std::floating_point Scalar>
Scalar quiet_nan() noexcept {
  const auto bits = ordered_bits<Scalar>(sizeof(Scalar) == 4 ? 0x7fc00000 : 0x7ff8000000000000);
  Scalar value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

namespace detail {

/// True if the bits of any of the count numbers' magnitudes are above `most`.
template <std::floating_point Scalar>
bool any_bits_above(const Scalar* values, index_t count, ordered_bits<Scalar> most) noexcept {
  // A difference is negative there. Four sums at a time: at -O2 GCC makes no vectors of one.
  using bits_t = ordered_bits<Scalar>;
  const auto past = [values, most](index_t i) {
    return most - (detail::bits_of(values[i]) & (std::numeric_limits<bits_t>::max)());
  };
  bits_t a = 0, b = 0, c = 0, d = 0;
  index_t i = 0;
  for (; i + 4 <= count; i += 4) {
    a |= past(i);
    b |= past(i + 1);
    c |= past(i + 2);
    d |= past(i + 3);
  }
  for (; i < count; ++i) a |= past(i);
  return (a | b | c | d) < 0;
}

}  // namespace detail

/// True if any of the count numbers is NaN.
template <std::floating_point Scalar>
bool any_nan(const Scalar* values, index_t count) noexcept {
  return detail::any_bits_above<Scalar>(values, count, detail::infinity_bits<Scalar>);
}

/// True if none of the count numbers is NaN or infinite.
template <std::floating_point Scalar>
bool all_finite(const Scalar* values, index_t count) noexcept {
  return !detail::any_bits_above<Scalar>(values, count, detail::infinity_bits<Scalar> - 1);
}

}  // namespace sluice::inline SLUICE_ISA
