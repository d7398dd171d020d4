/// Activations of feed-forward experts and of gates, with their derivatives.
///
///   relu       max(z, 0), derivative 0 at 0        gelu       z Phi(z), with the error function
///   silu       z / (1 + exp(-z))                   gelu_tanh  0.5 z (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3)))
///   sigmoid    1 / (1 + exp(-z))                   squared_relu  max(z, 0)^2, derivative 2 max(z, 0)
///   elu        z, below 0 exp(z) - 1               hyperbolic_tangent  tanh(z)
///   hard_tanh  min(max(z, -1), 1), derivative 1 at both ends             no_activation  z
///   quick_gelu  z / (1 + exp(-1.702 z)), CLIP's
///   cube       z^3
///
/// An activation of your own is a struct with static value(z) and derivative(z). Written as templates, they run on
/// vectors; written for one number, they run number by number.
#pragma once

#include <sluice/kernel/logistic.hpp>

#include <cmath>
#include <concepts>
#include <numbers>

namespace sluice::inline SLUICE_ISA {

template <typename A, typename Scalar>
concept Activation = requires(Scalar z) {
  { A::value(z) } -> std::convertible_to<Scalar>;
  { A::derivative(z) } -> std::convertible_to<Scalar>;
};

namespace detail {

/// The constant in V's precision, on all lanes if V is a vector.
template <typename V>
V constant(double value) {
  if constexpr (std::floating_point<V>)
    return V(value);
  else
    return V(static_cast<typename V::value_type>(value));
}

}  // namespace detail

struct relu {
  template <typename V>
  static V value(V z) {
    if constexpr (std::floating_point<V>)
      return z < V(0) ? V(0) : z;
    else
      return select(z < detail::constant<V>(0), detail::constant<V>(0),
                    z);  // a comparison is false for NaN, which passes
  }
  template <typename V>
  static V derivative(V z) {
    if constexpr (std::floating_point<V>)
      return z > V(0) ? V(1) : V(0);
    else
      return select(z > detail::constant<V>(0), detail::constant<V>(1), detail::constant<V>(0));
  }
};

struct squared_relu {
  template <typename V>
  static V value(V z) {
    const V positive = relu::value(z);
    return positive * positive;
  }
  template <typename V>
  static V derivative(V z) {
    return detail::constant<V>(2) * relu::value(z);
  }
};

struct sigmoid {
  template <typename V>
  static V value(V z) {
    return kernel::logistic(z);
  }
  template <typename V>
  static V derivative(V z) {
    const V s = kernel::logistic(z);
    return s * (detail::constant<V>(1) - s);
  }
};

struct silu {
  template <typename V>
  static V value(V z) {
    return z * kernel::logistic(z);
  }
  template <typename V>
  static V derivative(V z) {
    const V s = kernel::logistic(z);
    return s * (detail::constant<V>(1) + z * (detail::constant<V>(1) - s));
  }
};

struct quick_gelu {
  template <typename V>
  static V value(V z) {
    return z * kernel::logistic(detail::constant<V>(1.702) * z);
  }
  template <typename V>
  static V derivative(V z) {
    const V s = kernel::logistic(detail::constant<V>(1.702) * z);
    return s * (detail::constant<V>(1) + detail::constant<V>(1.702) * z * (detail::constant<V>(1) - s));
  }
};

struct elu {
  template <typename V>
  static V value(V z) {
    using std::expm1;
    if constexpr (std::floating_point<V>)
      return z < V(0) ? expm1(z) : z;
    else
      return select(z < detail::constant<V>(0), expm1(z), z);
  }
  template <typename V>
  static V derivative(V z) {
    using std::exp;
    if constexpr (std::floating_point<V>)
      return z < V(0) ? exp(z) : V(1);
    else
      return select(z < detail::constant<V>(0), exp(z), detail::constant<V>(1));
  }
};

struct hyperbolic_tangent {
  template <typename V>
  static V value(V z) {
    using std::tanh;
    if constexpr (std::floating_point<V>) {
      return tanh(z);
    } else {
      // Far out it is -1 or 1. The vectors' own makes exponentials there whose quotient -ffast-math turns into NaN.
      const V limit = detail::constant<V>(20), bounded = select(z > limit, limit, z);
      return tanh(select(bounded < -limit, -limit, bounded));
    }
  }
  template <typename V>
  static V derivative(V z) {
    const V t = value(z);
    return detail::constant<V>(1) - t * t;
  }
};

struct hard_tanh {
  template <typename V>
  static V value(V z) {
    const V low = detail::constant<V>(-1), high = detail::constant<V>(1);
    if constexpr (std::floating_point<V>)
      return is_nan(z) ? z : z < low ? low : z > high ? high : z;
    else
      return select(z < low, low, select(z > high, high, z));  // a comparison is false for NaN, which passes
  }
  template <typename V>
  static V derivative(V z) {
    using std::fabs;
    if constexpr (std::floating_point<V>)
      return fabs(z) <= V(1) ? V(1) : V(0);
    else
      return select(fabs(z) <= detail::constant<V>(1), detail::constant<V>(1), detail::constant<V>(0));
  }
};

struct cube {
  template <typename V>
  static V value(V z) {
    return z * z * z;
  }
  template <typename V>
  static V derivative(V z) {
    return detail::constant<V>(3) * z * z;
  }
};

struct no_activation {
  template <typename V>
  static V value(V z) {
    return z;
  }
  template <typename V>
  static V derivative(V) {
    return detail::constant<V>(1);
  }
};

struct gelu {
  template <typename V>
  static V value(V z) {
    return z * distribution(z);
  }
  template <typename V>
  static V derivative(V z) {
    using std::exp;
    const V density =
        detail::constant<V>(std::numbers::inv_sqrtpi / std::numbers::sqrt2) * exp(detail::constant<V>(-0.5) * z * z);
    return distribution(z) + z * density;
  }

private:
  template <typename V>
  static V distribution(V z) {
    using std::erf;
    return detail::constant<V>(0.5) * (detail::constant<V>(1) + erf(z * detail::constant<V>(1 / std::numbers::sqrt2)));
  }
};

struct gelu_tanh {
  template <typename V>
  static V value(V z) {
    return detail::constant<V>(0.5) * z * (detail::constant<V>(1) + bend(z));
  }
  template <typename V>
  static V derivative(V z) {
    const V t = bend(z);
    const V slope = detail::constant<V>(scale) * (detail::constant<V>(1) + detail::constant<V>(3 * cubic) * z * z);
    return detail::constant<V>(0.5) * (detail::constant<V>(1) + t + z * (detail::constant<V>(1) - t * t) * slope);
  }

private:
  static constexpr double scale = std::numbers::sqrt2 * std::numbers::inv_sqrtpi;
  static constexpr double cubic = 0.044715;

  template <typename V>
  static V bend(V z) {
    return hyperbolic_tangent::value(detail::constant<V>(scale) * (z + detail::constant<V>(cubic) * z * z * z));
  }
};

namespace detail {

/// f on every lane: at once if f takes vectors, else number by number.
template <typename Scalar, typename F>
kernel::simd<Scalar> on_lanes(F f, const kernel::simd<Scalar>& z) {
  if constexpr (requires {
                  { f(z) } -> std::convertible_to<kernel::simd<Scalar>>;
                }) {
    return f(z);
  } else {
    Scalar numbers[kernel::simd_width<Scalar>];
    kernel::store<Scalar>(numbers, z);
    for (Scalar& number : numbers) number = static_cast<Scalar>(f(number));
    return kernel::load(numbers);
  }
}

template <typename Phi, typename Scalar>
kernel::simd<Scalar> value_of(const kernel::simd<Scalar>& z) {
  return on_lanes<Scalar>([](auto v) -> decltype(Phi::value(v)) { return Phi::value(v); }, z);
}
template <typename Phi, typename Scalar>
kernel::simd<Scalar> derivative_of(const kernel::simd<Scalar>& z) {
  return on_lanes<Scalar>([](auto v) -> decltype(Phi::derivative(v)) { return Phi::derivative(v); }, z);
}

}  // namespace detail

static_assert(Activation<relu, float> && Activation<silu, float> && Activation<gelu, double> &&
              Activation<gelu_tanh, double>);

}  // namespace sluice::inline SLUICE_ISA
