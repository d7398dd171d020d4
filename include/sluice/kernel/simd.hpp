/// The one place that knows xsimd: its vectors, and the differences between its versions.
///
/// simd<Scalar> is the widest vector of the architecture that the source is compiled for.
#pragma once

#include <sluice/core/types.hpp>

#include <xsimd/xsimd.hpp>

#include <cstring>

/// Before a loop of a constant few rounds over an array of vectors: unrolled, the array becomes registers.
#if defined(__clang__)
#define SLUICE_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define SLUICE_UNROLL _Pragma("GCC unroll 32")
#else
#define SLUICE_UNROLL
#endif

namespace sluice::inline SLUICE_ISA::kernel {

template <typename Scalar>
using simd = xsimd::batch<Scalar>;

template <typename Scalar>
inline constexpr index_t simd_width = static_cast<index_t>(simd<Scalar>::size);

template <typename Scalar>
simd<Scalar> load(const Scalar* from) noexcept {
  return simd<Scalar>::load_unaligned(from);
}

template <typename Scalar>
void store(Scalar* to, const simd<Scalar>& v) noexcept {
  v.store_unaligned(to);
}

/// a * b + c, fused where the instruction set can.
template <typename Scalar>
simd<Scalar> multiply_add(const simd<Scalar>& a, const simd<Scalar>& b, const simd<Scalar>& c) noexcept {
  return xsimd::fma(a, b, c);
}

/// Sum of the lanes, always in the same order.
template <typename Scalar>
Scalar sum_lanes(const simd<Scalar>& v) noexcept {
  if constexpr (requires { reduce_add(v); })
    return reduce_add(v);
  else
    return hadd(v);  // the name before xsimd 10
}

/// The same bits as lanes of another type. (xsimd 10 changed what the template argument of its own cast means.)
template <typename To, typename From>
xsimd::batch<To> reinterpret_lanes(const xsimd::batch<From>& v) noexcept {
  xsimd::batch<To> result;
  static_assert(sizeof result.data == sizeof v.data);
  std::memcpy(&result.data, &v.data, sizeof v.data);
  return result;
}

/// Makes the compiler hold a vector in a register. GCC likes to fold a load into each instruction that uses it, which loads
/// the same numbers once for every use.
template <typename Scalar>
void keep_in_register([[maybe_unused]] simd<Scalar>& v) noexcept {
#if defined(__GNUC__) && defined(__x86_64__)
  asm("" : "+v"(v.data));
#endif
}

/// Asks for a cache line that will be read soon. Any address is allowed, also one past an array.
inline void prefetch([[maybe_unused]] const void* address) noexcept {
#if defined(__GNUC__)
  __builtin_prefetch(address, 0, 2);
#endif
}

}  // namespace sluice::inline SLUICE_ISA::kernel
