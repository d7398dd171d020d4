/// What softmax in parts is made of: exponentials of scores against a running maximum, lane by lane.
///
///   m' = max(m, scores)    p = 2^(score - m')    l' = 2^(m - m') l + sum of p        everything before times 2^(m - m')
///
/// Scores come multiplied with log2 e, so that powers of two are exponentials. Rows are keys, lanes are queries
/// (kernel/attention/lanes.hpp). The maximum starts at `no_maximum`, far below scores that count, and a hidden score is
/// `no_score`, as far below that: its power is 0 in every case, and neither is an infinity, of which -ffast-math makes
/// what it likes. A lane that sees nothing keeps l = 0.
#pragma once

#include <sluice/kernel/vector_math.hpp>

#include <array>
#include <limits>

namespace sluice::inline SLUICE_ISA::kernel {

template <typename Scalar>
inline constexpr Scalar no_score = std::numeric_limits<Scalar>::lowest();
template <typename Scalar>
inline constexpr Scalar no_maximum = std::numeric_limits<Scalar>::lowest() / 2;

namespace detail {

/// 2^x = 1 + c_1 x + c_2 x^2 ... for |x| <= 1/2 with the least relative error, 3e-9 and 2e-17 (Remez).
template <typename Scalar>
inline constexpr auto power_series = [] {
  if constexpr (sizeof(Scalar) == 4)
    return std::array<Scalar, 6>{0.693147214968F,   0.240226527829F,  0.0555031055101F,
                                 0.00961769297299F, 0.0013406643902F, 0.000155946781613F};
  else
    return std::array<Scalar, 11>{0.693147180559945697,   0.24022650695910098,    0.0555041086647903946,
                                  0.00961812910760700238, 0.00133335581534399647, 0.000154035304415721303,
                                  1.52527273851938682e-5, 1.32154426753298221e-6, 1.01806476592341389e-7,
                                  7.07257041281442351e-9, 4.07807192958833667e-10};
}();

/// p 2^whole for whole numbers, 0 where that is below the smallest normal number.
template <typename Scalar>
SLUICE_ALWAYS_INLINE simd<Scalar> scale_by_power(const simd<Scalar>& p, const simd<Scalar>& whole) noexcept {
#if defined(__AVX512F__)
  if constexpr (sizeof(simd<Scalar>) == 64) {
    if constexpr (sizeof(Scalar) == 4)
      return _mm512_scalef_ps(p, whole);
    else
      return _mm512_scalef_pd(p, whole);
  }
#endif
  const simd<Scalar> lowest(static_cast<Scalar>(std::numeric_limits<Scalar>::min_exponent - 1));
  const simd<Scalar> bounded = (xsimd::max)(whole, lowest);
  return xsimd::select(whole < lowest, simd<Scalar>(Scalar(0)), xsimd::ldexp(p, xsimd::to_int(bounded)));
}

}  // namespace detail

/// 2^x for x <= 0, exactly 1 for 0; 0 for what is far below. NaN stays NaN.
template <typename Scalar>
SLUICE_ALWAYS_INLINE simd<Scalar> power_of_two(const simd<Scalar>& x) noexcept {
  constexpr auto c = detail::power_series<Scalar>;
  const simd<Scalar> whole = xsimd::nearbyint(x), rest = x - whole;
  simd<Scalar> sum(c.back());
  for (std::size_t i = c.size() - 1; i-- > 0;) sum = multiply_add<Scalar>(sum, rest, simd<Scalar>(c[i]));
  return detail::scale_by_power<Scalar>(multiply_add<Scalar>(sum, rest, simd<Scalar>(Scalar(1))), whole);
}

/// Scores [keys][L] of a vector of lanes become powers; maximum and sum take them in, and factor is what sums from
/// before are multiplied with. Returns whether any factor is not 1.
template <typename Scalar>
bool exponentiate_lanes(Scalar* scores, index_t keys, index_t L, Scalar* maximum, Scalar* sum,
                        Scalar* factor) noexcept {
  const simd<Scalar> before = load(maximum);
  simd<Scalar> top = before;
  for (index_t j = 0; j < keys; ++j) top = (xsimd::max)(top, load(scores + j * L));
  simd<Scalar> total(Scalar(0));
  for (index_t j = 0; j < keys; ++j) {
    const simd<Scalar> p = power_of_two<Scalar>(load(scores + j * L) - top);
    store<Scalar>(scores + j * L, p);
    total += p;
  }
  const simd<Scalar> factors = power_of_two<Scalar>(before - top);
  store<Scalar>(factor, factors);
  store<Scalar>(sum, multiply_add<Scalar>(load(sum), factors, total));
  store<Scalar>(maximum, top);
  return xsimd::any(before < top);
}

}  // namespace sluice::inline SLUICE_ISA::kernel
