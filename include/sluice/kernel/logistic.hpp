/// The logistic function and its integral, of a number or of every lane of a vector.
///
///   logistic(z) = 1 / (1 + exp(-z)), the sigmoid        softplus(z) = log(1 + exp(z)), with logistic as its derivative
///
/// Only exp(-|z|), at most 1, is ever formed: nothing overflows, logistic(-infinity) is exactly 0, and the division
/// stays right where -ffast-math turns it into an approximate reciprocal, for which 1 / infinity is NaN. NaN stays NaN.
#pragma once

#include <sluice/kernel/vector_math.hpp>

#include <array>
#include <cmath>
#include <cstddef>

namespace sluice::inline SLUICE_ISA::kernel {

template <typename V>
V logistic(V z) noexcept {
  using std::exp, std::fabs;
  if constexpr (std::floating_point<V>) {
    const V e = exp(-fabs(z));
    return (z < V(0) ? e : V(1)) / (V(1) + e);
  } else {
    const V one(typename V::value_type(1)), zero(typename V::value_type(0));
    const V e = exp(-fabs(z));
    return select(z < zero, e, one) / (one + e);
  }
}

/// out[i] = logistic(in[i]); in and out may be the same.
template <std::floating_point Scalar>
void logistic(const Scalar* in, Scalar* out, index_t count) noexcept {
  transform(
      count, [](const auto& z) { return logistic(z); }, out, in);
}

template <std::floating_point Scalar>
Scalar softplus(Scalar z) noexcept {
  return (z > Scalar(0) ? z : Scalar(0)) + std::log1p(std::exp(-(std::abs)(z)));
}

/// On vectors: log(1 + e) = 2 atanh(s) with s = e / (2 + e), at most 1/3, whose series loses nothing where e is small.
template <typename V>
  requires(!std::floating_point<V>)
V softplus(V z) noexcept {
  using scalar = typename V::value_type;
  const V e = exp(-fabs(z)), s = e / (V(scalar(2)) + e), square = s * s;
  constexpr auto terms = [] {
    std::array<scalar, sizeof(scalar) == 4 ? 9 : 18> of{};
    for (std::size_t i = 0; i < of.size(); ++i) of[i] = scalar(1) / static_cast<scalar>(2 * i + 1);
    return of;
  }();
  V series(terms.back());
  for (std::size_t i = terms.size() - 1; i-- > 0;) series = multiply_add<scalar>(series, square, V(terms[i]));
  return select(z > V(scalar(0)), z, V(scalar(0))) + V(scalar(2)) * s * series;
}

}  // namespace sluice::inline SLUICE_ISA::kernel
