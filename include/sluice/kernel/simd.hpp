/// The one place that knows xsimd: its vectors, and the differences between its versions.
///
/// simd<Scalar> is the widest vector of the architecture that the source is compiled for.
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/core/types.hpp>

SLUICE_BEGIN_VECTOR_LIBRARY
#include <xsimd/xsimd.hpp>
SLUICE_END_VECTOR_LIBRARY

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

static_assert(XSIMD_VERSION_MAJOR * 100 + XSIMD_VERSION_MINOR >= 801, "sluice: xsimd 8.1 or newer is needed");

/// Before a loop of a constant few rounds over an array of vectors: unrolled, the array becomes registers.
#if defined(__clang__)
#define SLUICE_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define SLUICE_UNROLL _Pragma("GCC unroll 32")
#else
#define SLUICE_UNROLL
#endif

/// For functions that take vectors in arrays: called, they would pass them through memory.
#if defined(__GNUC__)
#define SLUICE_ALWAYS_INLINE [[gnu::always_inline]] inline
#else
#define SLUICE_ALWAYS_INLINE inline
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

/// a * b + c, rounded once where the instruction set can. For AVX-512 some versions of xsimd write a product and a sum,
/// which a compiler fuses in one place and not in another: the same sum would have other bits there.
template <typename Scalar>
simd<Scalar> multiply_add(const simd<Scalar>& a, const simd<Scalar>& b, const simd<Scalar>& c) noexcept {
#if defined(__AVX512F__)
  if constexpr (sizeof(simd<Scalar>) == 64) {
    if constexpr (sizeof(Scalar) == 4)
      return _mm512_fmadd_ps(a, b, c);
    else
      return _mm512_fmadd_pd(a, b, c);
  }
#endif
  return xsimd::fma(a, b, c);
}

/// The first `count` numbers of a vector, 0 < count <= width, and nothing past them; the other lanes hold `fill`.
template <typename Scalar>
simd<Scalar> load_part(const Scalar* from, index_t count, Scalar fill) noexcept {
  if constexpr (simd_width<Scalar> * sizeof(Scalar) == 64) {
#if defined(__AVX512F__)
    const auto lanes = (1u << count) - 1u;
    if constexpr (sizeof(Scalar) == 4)
      return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), static_cast<__mmask16>(lanes), from);
    else
      return _mm512_mask_loadu_pd(_mm512_set1_pd(fill), static_cast<__mmask8>(lanes), from);
#endif
  }
  Scalar numbers[simd_width<Scalar>];
  for (index_t i = 0; i < simd_width<Scalar>; ++i) numbers[i] = i < count ? from[i] : fill;
  return load(numbers);
}

/// Writes the first `count` lanes, 0 < count <= width, and nothing past them.
template <typename Scalar>
void store_part(Scalar* to, const simd<Scalar>& v, index_t count) noexcept {
  if constexpr (simd_width<Scalar> * sizeof(Scalar) == 64) {
#if defined(__AVX512F__)
    const auto lanes = (1u << count) - 1u;
    if constexpr (sizeof(Scalar) == 4)
      _mm512_mask_storeu_ps(to, static_cast<__mmask16>(lanes), v);
    else
      _mm512_mask_storeu_pd(to, static_cast<__mmask8>(lanes), v);
    return;
#endif
  }
  Scalar numbers[simd_width<Scalar>];
  store<Scalar>(numbers, v);
  std::copy_n(numbers, count, to);
}

/// out += weight * v in the first `count` lanes, all of them if count is larger, and nothing past them. Weight 0 adds
/// nothing: the infinity of an expert that does not count must not reach a token.
template <typename Scalar>
void add_weighted(Scalar weight, const simd<Scalar>& v, index_t count, Scalar* out) noexcept {
  constexpr index_t width = simd_width<Scalar>;
  if (weight == Scalar(0)) return;
  if (count >= width) {
    store<Scalar>(out, multiply_add<Scalar>(simd<Scalar>(weight), v, load(out)));
  } else {
    alignas(64) Scalar numbers[static_cast<std::size_t>(width)];
    store<Scalar>(numbers, simd<Scalar>(weight) * v);
    for (index_t j = 0; j < count; ++j) out[j] += numbers[j];
  }
}

/// The bits of floating-point lanes as integers or of integers as floating-point lanes, or as lanes of another size.
template <typename To, typename From>
simd<To> cast_bits(const xsimd::batch<From>& v) noexcept {
  simd<To> result;  // by memcpy: xsimd 10 changed what the template argument of its own cast means
  static_assert(sizeof result.data == sizeof v.data);
  std::memcpy(&result.data, &v.data, sizeof v.data);
  return result;
}

/// Lane by lane a where a comparison of integers holds, b elsewhere.
template <std::integral Int>
simd<Int> select_lanes(const xsimd::batch_bool<Int>& lanes, const simd<Int>& a, const simd<Int>& b) noexcept {
  if constexpr (sizeof lanes.data <= sizeof(std::uint64_t)) {
    // AVX-512 keeps comparisons as bits, the same for numbers of the same size. xsimd's own selection of integers does
    // not compile with GCC 12 at -O0.
    using number = std::conditional_t<sizeof(Int) == 4, float, double>;
    return cast_bits<Int>(
        xsimd::select(xsimd::batch_bool<number>(lanes.data), cast_bits<number>(a), cast_bits<number>(b)));
  } else {
    return xsimd::select(lanes, a, b);
  }
}

/// Bit i is set where lane i of a comparison of integers holds.
template <std::integral Int>
std::uint64_t lane_bits(const xsimd::batch_bool<Int>& lanes) noexcept {
  if constexpr (requires { lanes.mask(); }) {
    return lanes.mask();
  } else if constexpr (sizeof lanes.data <= sizeof(std::uint64_t)) {
    return static_cast<std::uint64_t>(lanes.data);
  } else {
    Int set[simd_width<Int>];
    store<Int>(set, select_lanes(lanes, simd<Int>(Int(1)), simd<Int>(Int(0))));
    std::uint64_t bits = 0;
    SLUICE_UNROLL for (index_t i = 0; i < simd_width<Int>; ++i) bits |= static_cast<std::uint64_t>(set[i]) << i;
    return bits;
  }
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SLUICE_SHUFFLES_LANES 1
#endif
#endif

#if defined(SLUICE_SHUFFLES_LANES)
namespace detail {

/// The lanes of two vectors by turns, from lane `From` on: a, b, a, b ...
template <index_t From, typename Register, index_t... Lane>
Register interleave(const Register& a, const Register& b, std::integer_sequence<index_t, Lane...>) noexcept {
  constexpr index_t width = sizeof...(Lane);
  return __builtin_shufflevector(a, b, static_cast<int>(From + Lane / 2 + Lane % 2 * width)...);
}

/// Both vectors in blocks of 2 Half lanes, a's and b's by turns of Half: the halves of each block added.
template <index_t Half, typename Register, index_t... Lane>
Register add_halves(const Register& a, const Register& b, std::integer_sequence<index_t, Lane...>) noexcept {
  constexpr index_t width = sizeof...(Lane);
  constexpr auto is_low = [](index_t lane) { return lane / Half % 2 == 0; };
  return __builtin_shufflevector(a, b, static_cast<int>(is_low(Lane) ? Lane : width + Lane)...) +
         __builtin_shufflevector(a, b, static_cast<int>(is_low(Lane) ? Lane + Half : width + Lane - Half)...);
}

/// Every Step-th lane.
template <index_t Step, typename Register, index_t... Lane>
Register every_lane(const Register& a, std::integer_sequence<index_t, Lane...>) noexcept {
  return __builtin_shufflevector(a, a, static_cast<int>(Lane * Step % index_t(sizeof...(Lane)))...);
}

}  // namespace detail
#endif

namespace detail {

/// Lane i + Lanes in lane i, the first ones behind the last.
template <index_t Lanes, typename Scalar>
simd<Scalar> rotated(const xsimd::batch<Scalar>& v) noexcept {
  constexpr index_t width = simd_width<Scalar>;
#if defined(SLUICE_SHUFFLES_LANES)
  using numbers [[gnu::vector_size(sizeof(v.data))]] = Scalar;  // what holds integers may be of no lanes
  return [&]<index_t... Lane>(const numbers& a, std::integer_sequence<index_t, Lane...>) {
    simd<Scalar> moved;
    moved.data = std::bit_cast<decltype(v.data)>(
        static_cast<numbers>(__builtin_shufflevector(a, a, static_cast<int>((Lane + Lanes) % width)...)));
    return moved;
  }(std::bit_cast<numbers>(v.data), std::make_integer_sequence<index_t, width>{});
#else
  Scalar twice[as_size(2 * width)];
  store<Scalar>(twice, v);
  store<Scalar>(twice + width, v);
  return load(twice + Lanes);
#endif
}

}  // namespace detail

/// Rows become columns: lane j of rows[i] and lane i of rows[j] change places.
template <typename Scalar>
void transpose(simd<Scalar> (&rows)[as_size(simd_width<Scalar>)]) noexcept {
  constexpr index_t width = simd_width<Scalar>;
#if defined(SLUICE_SHUFFLES_LANES)
  // Dealing the two halves of the rows out by turns moves one bit of a number's row to its column.
  constexpr std::make_integer_sequence<index_t, width> lanes;
  SLUICE_UNROLL for (index_t step = 1; step < width; step *= 2) {
    simd<Scalar> dealt[as_size(width)];
    SLUICE_UNROLL for (index_t i = 0; i < width / 2; ++i) {
      dealt[2 * i].data = detail::interleave<0>(rows[i].data, rows[i + width / 2].data, lanes);
      dealt[2 * i + 1].data = detail::interleave<width / 2>(rows[i].data, rows[i + width / 2].data, lanes);
    }
    SLUICE_UNROLL for (index_t i = 0; i < width; ++i) rows[i] = dealt[i];
  }
#else
  Scalar numbers[as_size(width)][as_size(width)];
  for (index_t i = 0; i < width; ++i) {
    Scalar row[as_size(width)];
    store<Scalar>(row, rows[i]);
    for (index_t j = 0; j < width; ++j) numbers[j][i] = row[j];
  }
  for (index_t i = 0; i < width; ++i) rows[i] = load(numbers[i]);
#endif
}

/// Sum of the lanes, always in the same order.
template <typename Scalar>
Scalar sum_lanes(const simd<Scalar>& v) noexcept {
  if constexpr (requires { reduce_add(v); })
    return reduce_add(v);
  else
    return hadd(v);  // the name before xsimd 10
}

/// All lanes as one, by an operation on two vectors whose result does not depend on order.
template <typename Scalar, typename Operation>
SLUICE_ALWAYS_INLINE Scalar fold_lanes(simd<Scalar> v, const Operation& operation) noexcept {
  constexpr index_t width = simd_width<Scalar>;
  [&]<int... Fold>(std::integer_sequence<int, Fold...>) {
    ((v = operation(v, detail::rotated<(width >> Fold) / 2>(v))), ...);
  }(std::make_integer_sequence<int, std::countr_zero(as_size(width))>{});
  return v.get(0);
}

/// The sums of the lanes of several vectors, a power of two of at most as many as there are lanes: lane j of the result
/// is that of vectors[j], and the lanes behind them hold anything. Every vector is folded in halves, whatever its
/// neighbours.
template <typename Scalar, std::size_t Count>
SLUICE_ALWAYS_INLINE simd<Scalar> sums_of_lanes(const simd<Scalar> (&vectors)[Count]) noexcept {
  constexpr index_t width = simd_width<Scalar>, count = static_cast<index_t>(Count);
  static_assert(count <= width && (count & (count - 1)) == 0);
#if defined(SLUICE_SHUFFLES_LANES)
  // Two vectors become one that holds the folded halves of both, until there is one; that one is folded by itself.
  constexpr std::make_integer_sequence<index_t, width> lanes;
  simd<Scalar> part[Count];
  SLUICE_UNROLL for (index_t i = 0; i < count; ++i) part[i] = vectors[i];
  [&]<int... Fold>(std::integer_sequence<int, Fold...>) {
    const auto fold = [&]<index_t Half, index_t Parts>(std::integer_sequence<index_t, Half, Parts>) {
      constexpr index_t left = (std::max<index_t>)(Parts / 2, 1), partner = Parts > 1 ? left : 0;
      SLUICE_UNROLL for (index_t i = 0; i < left; ++i)
        part[i].data = detail::add_halves<Half>(part[i].data, part[i + partner].data, lanes);
    };
    (fold(std::integer_sequence<index_t, (width >> Fold) / 2, (count >> Fold)>{}), ...);
  }(std::make_integer_sequence<int, std::countr_zero(as_size(width))>{});
  part[0].data = detail::every_lane<width / count>(part[0].data, lanes);
  return part[0];
#else
  Scalar sums[as_size(width)] = {};
  for (index_t i = 0; i < count; ++i) {
    Scalar numbers[as_size(width)];
    store<Scalar>(numbers, vectors[i]);
    for (index_t half = width / 2; half > 0; half /= 2)
      for (index_t l = 0; l < half; ++l) numbers[l] += numbers[l + half];
    sums[i] = numbers[0];
  }
  return load(sums);
#endif
}

/// Makes the compiler hold a vector in a register. GCC likes to fold a load into each instruction that uses it, which
/// loads the same numbers once for every use.
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
