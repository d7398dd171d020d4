/// Where a routing weight acts, and when it is computed: the same for every rule of token-choice routing.
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/core/types.hpp>

#include <cmath>
#include <concepts>
#include <limits>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// A finite option. Infinity is refused by its size: comparisons with infinity itself mean nothing under -ffast-math.
template <std::floating_point Scalar>
bool is_usable(Scalar v) noexcept {
  return !is_nan(v) && (std::abs)(v) <= (std::numeric_limits<Scalar>::max)() / 2;
}

}  // namespace detail

/// Where a routing weight acts.
enum class weight_use {
  output,            ///< on the expert's output (nearly all systems)
  input,             ///< on the expert's input (Llama-4)
  straight_through,  ///< on the output, and its gradient also comes through the input, as if dispatch = 1 + w - stop(w)
};

template <typename Scalar>
struct weight_application {
  weight_use use = weight_use::output;
  Scalar input_factor = 1;              ///< every expert's input is multiplied by this (MoE++: k)
  bool renormalize_after_drop = false;  ///< weights are computed from the choices that capacity kept (DeepSpeed)

  friend bool operator==(const weight_application&, const weight_application&) = default;
};

}  // namespace sluice::inline SLUICE_ISA
