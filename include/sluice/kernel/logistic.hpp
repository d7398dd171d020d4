/// The logistic function and its integral, of a number or of every lane of a vector.
///
///   logistic(z) = 1 / (1 + exp(-z)), the sigmoid        softplus(z) = log(1 + exp(z)), with logistic as its derivative
///
/// Only exp(-|z|), at most 1, is ever formed: nothing overflows, logistic(-infinity) is exactly 0, and the division
/// stays right where -ffast-math turns it into an approximate reciprocal, for which 1 / infinity is NaN. NaN stays NaN.
#pragma once

#include <sluice/kernel/vector_math.hpp>

#include <cmath>

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

}  // namespace sluice::inline SLUICE_ISA::kernel
