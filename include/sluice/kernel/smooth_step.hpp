/// Smooth step: rises from exactly 0 to exactly 1 over a width gamma, with a continuous derivative.
///
///   S(z) = 0 for z <= -gamma/2, 1 for z >= gamma/2, else -2 z^3 / gamma^3 + 3 z / (2 gamma) + 1/2
///
/// Computed as v^2 (3 - 2v) with v = z/gamma + 1/2, and 1 - S likewise from w = 1/2 - z/gamma. The polynomial as
/// written above cancels near its ends: there S could round to 0 while its slope is far from 0. Here S is 0 only where
/// the slope is 0 too. Hazimeh et al. 2021 (DSelect-k), arXiv:2106.03760.
#pragma once

#include <sluice/core/types.hpp>

#include <algorithm>

namespace sluice::inline SLUICE_ISA::kernel {

template <typename Scalar>
struct smooth_step {
  Scalar low = 1;    ///< 1 - S
  Scalar high = 0;   ///< S
  Scalar slope = 0;  ///< S'

  smooth_step() = default;
  /// z must not be NaN.
  smooth_step(Scalar z, Scalar gamma) noexcept {
    const Scalar v = std::clamp(z / gamma + Scalar(0.5), Scalar(0), Scalar(1));
    const Scalar w = std::clamp(Scalar(0.5) - z / gamma, Scalar(0), Scalar(1));
    low = w * w * (3 - 2 * w);
    high = v * v * (3 - 2 * v);
    slope = 6 * v * w / gamma;
  }
};

}  // namespace sluice::inline SLUICE_ISA::kernel
