/// What softmax in parts is made of: exponentials of scores against a running maximum, lane by lane.
///
///   m' = max(m, scores)    p = exp(score - m')    l' = exp(m - m') l + sum of p        everything before times exp(m - m')
///
/// Rows are keys, lanes are queries (kernel/attention/lanes.hpp). The maximum starts at `no_maximum`, far below scores
/// that count, and a hidden score is `no_score`, as far below that: its exponential is 0 in every case, and neither is an
/// infinity, of which -ffast-math makes what it likes. A lane that sees nothing keeps l = 0.
#pragma once

#include <sluice/kernel/vector_math.hpp>

#include <limits>

namespace sluice::inline SLUICE_ISA::kernel {

template <typename Scalar>
inline constexpr Scalar no_score = std::numeric_limits<Scalar>::lowest();
template <typename Scalar>
inline constexpr Scalar no_maximum = std::numeric_limits<Scalar>::lowest() / 2;

/// Scores [keys][L] become exponentials; maximum [L] and sum [L] take them in, and factor [L] is what sums from before
/// are multiplied with. Returns whether any factor is not 1.
template <typename Scalar>
bool exponentiate_lanes(Scalar* scores, index_t keys, index_t L, Scalar* maximum, Scalar* sum,
                        Scalar* factor) noexcept {
  constexpr index_t vector = simd_width<Scalar>;
  bool moved = false;
  for (index_t l = 0; l < L; l += vector) {
    const simd<Scalar> before = load(maximum + l);
    simd<Scalar> top = before;
    for (index_t j = 0; j < keys; ++j) top = xsimd::max(top, load(scores + j * L + l));
    simd<Scalar> total(Scalar(0));
    for (index_t j = 0; j < keys; ++j) {
      const simd<Scalar> p = xsimd::exp(load(scores + j * L + l) - top);
      store<Scalar>(scores + j * L + l, p);
      total += p;
    }
    const simd<Scalar> factors = xsimd::exp(before - top);
    moved |= xsimd::any(before < top);
    store<Scalar>(factor + l, factors);
    store<Scalar>(sum + l, multiply_add<Scalar>(load(sum + l), factors, total));
    store<Scalar>(maximum + l, top);
  }
  return moved;
}

}  // namespace sluice::inline SLUICE_ISA::kernel
