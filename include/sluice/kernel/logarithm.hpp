/// The natural logarithm of a number or of every lane of a vector.
///
/// Without optimisation xsimd 8.1 has none for AVX-512, where GCC's blends are macros then: lane by lane there.
#pragma once

#include <sluice/kernel/simd.hpp>

#include <cmath>
#include <concepts>

namespace sluice::inline SLUICE_ISA::kernel {

template <typename V>
V logarithm(const V& v) noexcept {
  if constexpr (std::floating_point<V>) {
    return std::log(v);
  } else {
#if defined(__AVX512BW__) && !defined(__OPTIMIZE__)
    using scalar = typename V::value_type;
    alignas(V) scalar lanes[sizeof(V) / sizeof(scalar)];
    v.store_aligned(lanes);
    for (scalar& lane : lanes) lane = std::log(lane);
    return V::load_aligned(lanes);
#else
    return xsimd::log(v);
#endif
  }
}

}  // namespace sluice::inline SLUICE_ISA::kernel
