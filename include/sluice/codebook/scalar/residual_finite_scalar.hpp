/// Residual finite scalar quantisation: every stage has the levels of one grid, between two levels of the stage before.
///
///   z = c tanh(x / c),  c[d] = 1 + 1 / (L[d] - 1)        r_1 = z     q_j = stage j of r_j     r_{j+1} = r_j - q_j
///   stage j, number d: symmetric_rounding with hard_tanh, L[d] levels, scale L[d]^-(j - 1)        y = q_1 + ... + q_M
///
///   auto rfsq = residual_finite_scalar<float>({8, 5, 5, 5}, 4);                               // 4 ids a token
///   auto open = residual_quantizer{finite_scalar_stages<float, hyperbolic_tangent>({3, 3}, 2),
///                                  {.gradient = residual_gradient::each_stage}};              // without any clamp
///
/// The soft clamp keeps x within half a gap of the outermost levels, where a next stage reaches what is left over: the
/// error shrinks L-fold a stage. Gradients are those of the library that most use: each stage's own, whose slope is 1
/// within its clamp and 0 outside. Projections and groups: projected_quantizer and product_quantizer around it.
#pragma once

#include <sluice/codebook/scalar/finite_scalar.hpp>
#include <sluice/codebook/structure/residual.hpp>
#include <sluice/codebook/structure/soft_clamped.hpp>

#include <span>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// The stages alone. Throws std::invalid_argument unless every number has at least 2 levels and the scale of the last
/// stage is above 0.
template <FloatOrDouble Scalar, typename Squash = hard_tanh>
auto finite_scalar_stages(const std::vector<index_t>& levels, index_t depth) {
  using rounding = symmetric_rounding<Scalar, Squash>;
  std::vector<finite_scalar_quantizer<Scalar, rounding>> stages;
  std::vector<Scalar> scale(levels.size(), Scalar(1));
  for (index_t j = 0; j < depth; ++j) {
    std::vector<rounding> roundings;
    for (std::size_t d = 0; d < levels.size(); ++d) {
      roundings.push_back(rounding(levels[d], {.scale = scale[d]}));
      scale[d] /= static_cast<Scalar>(levels[d]);
    }
    stages.emplace_back(std::span<const rounding>(roundings));
  }
  return stages;
}

/// The stages one after the other behind the soft clamp. Throws std::invalid_argument as above, and unless there is a
/// stage.
template <FloatOrDouble Scalar>
auto residual_finite_scalar(const std::vector<index_t>& levels, index_t depth) {
  residual_quantizer stages{finite_scalar_stages<Scalar>(levels, depth), {.gradient = residual_gradient::each_stage}};
  std::vector<Scalar> bounds;
  for (const index_t count : levels) bounds.push_back(1 + 1 / static_cast<Scalar>(count - 1));
  return soft_clamped{std::move(stages), std::move(bounds)};
}

}  // namespace sluice::inline SLUICE_ISA
