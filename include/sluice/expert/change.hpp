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

#include <sluice/core/concepts.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Expert>
class change_expert {
  static_assert(explain_expert<Expert>());

public:
  using scalar = typename Expert::scalar;

  /// Throws std::invalid_argument if the expert's widths differ.
  explicit change_expert(Expert expert) : expert_(std::move(expert)) {
    if (expert_.inputs() != expert_.outputs())
      throw_invalid("a change needs equal widths, not ", expert_.inputs(), " -> ", expert_.outputs());
  }

  index_t inputs() const noexcept { return expert_.inputs(); }
  index_t outputs() const noexcept { return expert_.outputs(); }
  index_t saved_columns() const noexcept { return expert_.saved_columns(); }
  Expert& expert() noexcept { return expert_; }
  const Expert& expert() const noexcept { return expert_; }

  void forward(tokens_in<scalar> x, tokens_out<scalar> y, tokens_out<scalar> saved) const {
    expert_.forward(x, y, saved);
    y -= x;
  }
  void backward(tokens_in<scalar> x, tokens_in<scalar> dy, tokens_out<scalar> saved, tokens_out<scalar> dx)
    requires DifferentiableExpert<Expert>
  {
    expert_.backward(x, dy, saved, dx);
    dx -= dy;
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<Expert>) Expert::visit_parameters(self.expert_, visit);
  }

private:
  Expert expert_;
};

}  // namespace sluice::inline SLUICE_ISA
