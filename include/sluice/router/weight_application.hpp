/// Where a routing weight acts, and when it is computed: the same for every rule of token-choice routing.
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/core/sparse_plan.hpp>
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

template <FloatOrDouble Scalar>
struct weight_application {
  weight_use use = weight_use::output;
  Scalar input_factor = 1;              ///< every expert's input is multiplied by this (MoE++: k)
  bool renormalize_after_drop = false;  ///< weights are computed from the choices that capacity kept (DeepSpeed)

  bool scales_inputs() const noexcept { return use != weight_use::output || input_factor != Scalar(1); }
  /// What a routing weight makes of an expert's output and of its input.
  Scalar on_output(Scalar weight) const noexcept { return use == weight_use::input ? Scalar(1) : weight; }
  Scalar on_input(Scalar weight) const noexcept {
    return input_factor * (use == weight_use::input ? weight : Scalar(1));
  }
  /// The gradient of the weight of assignment i.
  Scalar gradient(const sparse_plan_gradient<Scalar>& dplan, index_t i) const {
    switch (use) {
      case weight_use::output:
        return dplan.weight[i];
      case weight_use::input:
        return input_factor * dplan.input_scale[i];
      case weight_use::straight_through:
        return dplan.weight[i] + input_factor * dplan.input_scale[i];
    }
    return 0;
  }

  friend bool operator==(const weight_application&, const weight_application&) = default;
};

}  // namespace sluice::inline SLUICE_ISA
