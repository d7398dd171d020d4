/// How one number goes to one of L levels: the policies of quantisers that round every number on its own.
///
///   position(z)   where z lies among the levels        level = the nearest, 0 ... L - 1
///   code(level) = scale (level - centre) / divisor     slope(z) = d code / d z, where rounding has slope 1
///
///   zero_centred_rounding   half tanh(z / scale + atanh(offset / half)) - offset    half = (L - 1)(1 + epsilon) / 2
///   original_rounding       half tanh(z / scale + tan(offset / half)) - offset      half = (L - 1)(1 - epsilon) / 2
///   symmetric_rounding      (L - 1)(squash(z / scale) + 1) / 2                      squash is tanh or hard_tanh
///   sign_rounding           z > 0: code +size, else -size                           slope: a number
///
/// The first two have offset 1/2 if L is even, else 0, round half to even, and divide by floor(L / 2): code 0 is among
/// the levels, an even L reaches -1 but not 1, and L = 2 has the codes -1 and 0. The first maps z = 0 to exactly 0. The
/// third rounds half up and has its levels between -1 and 1, both included. What lies past the outermost levels takes
/// those, infinity too; NaN takes level 0.
/// Mentzer et al. 2024 (FSQ), arXiv:2309.15505: original_rounding in the paper's code, zero_centred_rounding in the
/// library that most use, symmetric_rounding there in residual quantisers.
///
/// A rounding of your own has levels(), code, slope and position, which take vectors, and level(position).
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/kernel/activation.hpp>

#include <cmath>
#include <concepts>

namespace sluice::inline SLUICE_ISA {

template <typename R, typename Scalar>
concept LevelRounding = requires(const R& rounding, kernel::simd<Scalar> z, Scalar position, index_t level) {
  { rounding.levels() } -> std::convertible_to<index_t>;
  { rounding.position(z) } -> std::convertible_to<kernel::simd<Scalar>>;
  { rounding.slope(z) } -> std::convertible_to<kernel::simd<Scalar>>;
  { rounding.level(position) } -> std::convertible_to<index_t>;
  { rounding.code(level) } -> std::convertible_to<Scalar>;
};

namespace detail {

/// L codes, equally far apart.
template <FloatOrDouble Scalar>
class spaced_levels {
public:
  /// Throws std::invalid_argument unless L >= 2 and 0 < scale < infinity.
  spaced_levels(index_t levels, Scalar scale, Scalar centre, Scalar divisor)
      : levels_(levels), scale_(scale), centre_(centre), divisor_(divisor) {
    if (levels < 2 || !is_above(scale, 0) || scale > (std::numeric_limits<Scalar>::max)())
      throw_invalid("rounding needs at least 2 levels and a finite scale above 0, not ", levels, " and ", scale);
  }

  index_t levels() const noexcept { return levels_; }
  Scalar scale() const noexcept { return scale_; }

  Scalar code(index_t level) const noexcept { return scale_ * ((static_cast<Scalar>(level) - centre_) / divisor_); }
  /// The level whose code lies nearest.
  index_t level_of_code(Scalar code) const noexcept {
    return clamped(std::nearbyint(code / scale_ * divisor_ + centre_));
  }

protected:
  index_t clamped(Scalar level) const noexcept {
    if (order_key(level) <= 0) return 0;
    return level < static_cast<Scalar>(levels_ - 1) ? static_cast<index_t>(level) : levels_ - 1;
  }

private:
  index_t levels_;
  Scalar scale_, centre_, divisor_;
};

template <FloatOrDouble Scalar>
struct wide_bounds {
  static double half(double gaps, double epsilon) { return gaps * (1 + epsilon) / 2; }
  static double shift(double offset) { return std::atanh(offset); }
};
template <FloatOrDouble Scalar>
struct narrow_bounds {
  static double half(double gaps, double epsilon) { return gaps * (1 - epsilon) / 2; }
  static double shift(double offset) { return std::tan(offset); }
};

/// Levels counted from one whose code is 0.
template <FloatOrDouble Scalar, typename Bounds>
class bounded_rounding : public spaced_levels<Scalar> {
public:
  struct options {
    Scalar scale = 1;
    double epsilon = 1e-3;
  };

  /// Throws std::invalid_argument unless L >= 2, 0 < scale < infinity and 0 < epsilon < 1/2.
  explicit bounded_rounding(index_t levels, options o = {})
      : spaced_levels<Scalar>(levels, o.scale, static_cast<Scalar>(levels / 2), static_cast<Scalar>(levels / 2)),
        zero_level_(levels / 2) {
    if (!is_above(o.epsilon, 0) || o.epsilon >= 0.5) throw_invalid("rounding needs 0 < epsilon < 0.5, not ", o.epsilon);
    const double half = Bounds::half(static_cast<double>(levels - 1), o.epsilon), offset = levels % 2 == 0 ? 0.5 : 0;
    half_ = static_cast<Scalar>(half);
    offset_ = static_cast<Scalar>(offset);
    shift_ = static_cast<Scalar>(Bounds::shift(offset / half));
  }

  /// The position is counted from the level of code 0, so that half to even is what it is in the paper's code.
  template <typename V>
  V position(V z) const {
    return hyperbolic_tangent::value(bent(z)) * V(half_) - V(offset_);
  }
  index_t level(Scalar position) const noexcept {
    return this->clamped(std::nearbyint(position) + static_cast<Scalar>(zero_level_));
  }
  template <typename V>
  V slope(V z) const {
    return hyperbolic_tangent::derivative(bent(z)) * V(half_ / static_cast<Scalar>(zero_level_));
  }

private:
  template <typename V>
  V bent(V z) const {
    return z / V(this->scale()) + V(shift_);
  }

  index_t zero_level_;
  Scalar half_, offset_, shift_;
};

}  // namespace detail

template <FloatOrDouble Scalar>
using zero_centred_rounding = detail::bounded_rounding<Scalar, detail::wide_bounds<Scalar>>;
template <FloatOrDouble Scalar>
using original_rounding = detail::bounded_rounding<Scalar, detail::narrow_bounds<Scalar>>;

template <FloatOrDouble Scalar, typename Squash = hyperbolic_tangent>
class symmetric_rounding : public detail::spaced_levels<Scalar> {
public:
  struct options {
    Scalar scale = 1;
  };

  /// Throws std::invalid_argument unless L >= 2 and 0 < scale < infinity.
  explicit symmetric_rounding(index_t levels, options o = {})
      : detail::spaced_levels<Scalar>(levels, o.scale, half_of(levels), half_of(levels)), half_(half_of(levels)) {}

  template <typename V>
  V position(V z) const {
    return (Squash::value(z / V(this->scale())) + detail::constant<V>(1)) * V(half_);
  }
  index_t level(Scalar position) const noexcept { return this->clamped(std::floor(position + Scalar(0.5))); }
  template <typename V>
  V slope(V z) const {
    return Squash::derivative(z / V(this->scale()));
  }

private:
  static Scalar half_of(index_t levels) { return static_cast<Scalar>(levels - 1) / 2; }

  Scalar half_;
};

template <FloatOrDouble Scalar>
class sign_rounding : public detail::spaced_levels<Scalar> {
public:
  /// Throws std::invalid_argument unless 0 < size < infinity.
  explicit sign_rounding(Scalar size = 1, Scalar slope = 1)
      : detail::spaced_levels<Scalar>(2, size, Scalar(0.5), Scalar(0.5)), slope_(slope) {}

  template <typename V>
  V position(V z) const {
    return z;
  }
  index_t level(Scalar position) const noexcept { return order_key(position) > 0 ? 1 : 0; }
  template <typename V>
  V slope(V) const {
    return V(slope_);
  }

private:
  Scalar slope_;
};

static_assert(LevelRounding<zero_centred_rounding<float>, float> && LevelRounding<original_rounding<double>, double>);
static_assert(LevelRounding<symmetric_rounding<float, hard_tanh>, float> && LevelRounding<sign_rounding<float>, float>);

}  // namespace sluice::inline SLUICE_ISA
