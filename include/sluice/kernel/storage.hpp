/// Weight storage: how the numbers of a linear map are kept in panels, and how one step of a kernel uses them.
///
///   full_precision<float | double>   as they are calculated with; can be trained
///   half_precision<bfloat16 | float16>   two bytes a weight, widened in registers, arithmetic in float; read only
///
/// A storage policy is a struct with
///   scalar       what tokens and outputs are made of
///   element      what an array of weights holds
///   group        consecutive inputs that one step takes, side by side in a lane: 1, or 2 and 4 for dot-product instructions
///   activation   `group` inputs of a row, packed: what a step broadcasts to all lanes
///   vector       a step's weights in registers, lanes x group of them;  load(p) -> vector
///   sum          what a step adds to, with as many lanes as simd<scalar>;  multiply_add(activation, vector, sum) -> sum
///   pack(x, f)   -> activation, from `group` adjacent inputs times f
/// and, where sums are not numbers of type scalar yet (8-bit activations with a scale a row),
///   row_scale(x, n)     -> what a row of n inputs is divided by when it is packed, and its outputs multiplied by
///   finish(sum)         -> simd<scalar>
/// Everything else is shared: tiles, blocking, prefetch, gather, epilogues, scheduling.
#pragma once

#include <sluice/core/half.hpp>
#include <sluice/core/matrix_layout.hpp>
#include <sluice/kernel/simd.hpp>
#include <sluice/kernel/widen.hpp>

#include <concepts>

namespace sluice::inline SLUICE_ISA {

template <typename S>
concept WeightStorage = std::floating_point<typename S::scalar> &&
    requires(const typename S::element* weights, typename S::activation a, typename S::vector w, typename S::sum sum,
             const typename S::scalar* x) {
  { S::group } -> std::convertible_to<index_t>;
  { S::load(weights) } -> std::same_as<typename S::vector>;
  { S::multiply_add(a, w, sum) } -> std::same_as<typename S::sum>;
  { S::pack(x, *x) } -> std::same_as<typename S::activation>;
};

template <WeightStorage Storage>
inline constexpr panel_shape panels_of{kernel::simd_width<typename Storage::scalar>, Storage::group};

/// What the policies without groups share: an activation is the number itself.
template <std::floating_point Scalar>
struct ungrouped_storage {
  using scalar = Scalar;
  using activation = Scalar;
  using vector = kernel::simd<Scalar>;
  using sum = kernel::simd<Scalar>;
  static constexpr index_t group = 1;

  static sum multiply_add(activation a, const vector& w, const sum& s) noexcept { return xsimd::fma(vector(a), w, s); }
  static activation pack(const Scalar* x, Scalar scale) noexcept { return *x * scale; }
};

template <std::floating_point Scalar>
struct full_precision : ungrouped_storage<Scalar> {
  using element = Scalar;
  static kernel::simd<Scalar> load(const Scalar* weights) noexcept { return kernel::load(weights); }
};

namespace detail {

/// Is Storage one whose weights may have gradients: the elements are the numbers that kernels calculate with.
template <typename Storage>
inline constexpr bool is_trainable_storage = std::same_as<typename Storage::element, typename Storage::scalar>;

}  // namespace detail

template <typename Half>
struct half_precision : ungrouped_storage<float> {
  using element = Half;
  static kernel::simd<float> load(const Half* weights) noexcept { return kernel::load_widened(weights); }
};

using bfloat16_storage = half_precision<bfloat16>;
using float16_storage = half_precision<float16>;

static_assert(WeightStorage<full_precision<float>> && WeightStorage<full_precision<double>> &&
              WeightStorage<bfloat16_storage> && WeightStorage<float16_storage>);

}  // namespace sluice::inline SLUICE_ISA
