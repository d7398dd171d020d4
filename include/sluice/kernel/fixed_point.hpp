/// Numbers in fixed point, rounded down: what a shift-and-add unit sees of an activation.
///
///   value(a) = floor(a 2^F) / 2^F, clipped to [-2^(I-1), 2^(I-1) - 1]         I bits with the sign, F bits of fraction
///
/// For vectors and numbers alike; NaN stays NaN, infinities are clipped. in_fixed_point<Phi> is an activation whose
/// result is rounded so and whose derivative is Phi's: straight through.
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/kernel/activation.hpp>

#include <cmath>
#include <concepts>

namespace sluice::inline SLUICE_ISA {

template <int WholeBits = 16, int FractionBits = 16>
struct fixed_point {
  static constexpr double steps = static_cast<double>(1LL << FractionBits);
  static constexpr double least = -static_cast<double>(1LL << (WholeBits - 1));
  static constexpr double most = static_cast<double>((1LL << (WholeBits - 1)) - 1);

  template <typename V>
  static V value(const V& a) {
    const V scale = detail::constant<V>(steps), low = detail::constant<V>(least), high = detail::constant<V>(most);
    if constexpr (std::floating_point<V>) {
      if (is_nan(a)) return a;
      const V rounded = std::floor(a * scale) / scale;
      return rounded < low ? low : rounded > high ? high : rounded;
    } else {
      const V rounded = xsimd::floor(a * scale) / scale;
      return xsimd::select(rounded < low, low, xsimd::select(rounded > high, high, rounded));
    }
  }
};

template <typename Phi, typename Rounding = fixed_point<>>
struct in_fixed_point {
  template <typename V>
  static auto value(const V& z) -> decltype(Phi::value(z)) {
    return Rounding::value(Phi::value(z));
  }
  template <typename V>
  static auto derivative(const V& z) -> decltype(Phi::derivative(z)) {
    return Phi::derivative(z);
  }
};

static_assert(Activation<in_fixed_point<gelu>, float> && Activation<in_fixed_point<relu>, double>);

}  // namespace sluice::inline SLUICE_ISA
