/// What an expert changes about a token: f(x) - x.
///
///   y [n,D] = f(x) - x        dx = f'(dy) - dy        for any expert f of equal widths
///
/// With a weight w and a residual layer around the mixture a token becomes w f(x) + (1 - w) x, a blend of what the
/// expert makes of it and of itself, and one without expert passes as it is (BASE, StableMoE):
///
///   residual_layer block{moe_layer{base_router<float>{64, 8}, expert_bank<change_expert<my_expert>>{...}}};
///
/// Parameters bear the expert's own names. An expert that adds a term to its input, x + g(x), is had for less: use g.
/// NaN stays in its row. n = 0 is fine. Lewis et al. 2021, arXiv:2103.16716; Dai et al. 2022, arXiv:2204.08396.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/expert/decorator.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Expert>
class change_expert : public expert_decorator<Expert> {
public:
  using typename expert_decorator<Expert>::scalar;

  /// Throws std::invalid_argument if the expert's widths differ.
  explicit change_expert(Expert expert) : expert_decorator<Expert>(std::move(expert)) {
    if (this->inputs() != this->outputs())
      throw_invalid("a change needs equal widths, not ", this->inputs(), " -> ", this->outputs());
  }

  void forward(tokens_in<scalar> x, tokens_out<scalar> y, tokens_out<scalar> saved) const {
    this->inner().forward(x, y, saved);
    y -= x;
  }
  void backward(tokens_in<scalar> x, tokens_in<scalar> dy, tokens_out<scalar> saved, tokens_out<scalar> dx)
    requires DifferentiableExpert<Expert>
  {
    this->inner().backward(x, dy, saved, dx);
    dx -= dy;
  }
};

}  // namespace sluice::inline SLUICE_ISA
