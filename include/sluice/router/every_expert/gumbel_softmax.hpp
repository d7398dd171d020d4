/// Gumbel-softmax router: every token goes to every expert, weighed by a softmax of logits with Gumbel noise.
///
///   X [T,D]   L = gate(X) [T,E]   zeta standard Gumbel, -log(-log U)
///   training    w[t] = softmax((L[t] + zeta[t]) / tau),  a draw for every token and expert
///   inference   w[t] = mean over m = 1 .. M of softmax((L[t] + zeta_m) / tau)
///   dl = (1/tau) w (g - sum of w g), at inference the mean of these over m;   g the gradients of the weights
///
/// As experts do not depend on the draw, this mean of weights is the mean of outputs, and experts run once. The draws
/// of inference are fixed when the router is made, from options.seed, and serve every token: a call without training is
/// a function of x, for a token alone as in a batch, and so is its exact gradient. With M large and tau small the mean
/// is softmax(L). Draws of training are those at gumbel_softmax_weights::site, position t E + e.
/// M softmaxes a token at inference, E logarithms in training: several times the work of one softmax. A token with an
/// infinite logit shares its mass among those. All else: router/every_expert/dense_mixture.hpp.
/// Chernov 2025, "(GG) MoE vs. MLP on Tabular Data", arXiv:2502.03608; Jang, Gu, Poole 2017, arXiv:1611.01144.
#pragma once

#include <sluice/gate/linear.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/router/every_expert/dense_softmax.hpp>
#include <sluice/router/weight_application.hpp>

#include <algorithm>
#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class gumbel_softmax_weights {
public:
  static constexpr random_site site{"gumbel_softmax.weights"};

  struct options {
    Scalar temperature = 1;  ///< tau
    index_t samples = 10;    ///< M
    std::uint64_t seed = 1;  ///< of the draws of inference
  };

  /// Throws std::invalid_argument unless E >= 1, tau > 0 and M >= 1.
  gumbel_softmax_weights(index_t experts, options o) : temperature_(o.temperature) {
    if (!detail::is_usable(o.temperature) || !(o.temperature > Scalar(0)))
      throw_invalid("a Gumbel softmax needs a temperature > 0, not ", o.temperature);
    if (experts < 1 || o.samples < 1)
      throw_invalid("a Gumbel softmax needs E >= 1 and at least one sample, not E = ", experts, " and ", o.samples);
    const random_source random(o.seed);
    draws_.resize(o.samples, experts);
    for (index_t i = 0; i < draws_.size(); ++i) draws_.data()[i] = static_cast<Scalar>(random.gumbel(site, i));
  }

  void validate(index_t experts) const {
    if (draws_.cols() != experts)
      throw_invalid("the Gumbel draws are for ", draws_.cols(), " experts, the router has E = ", experts);
  }

  void weigh(const mixture_row<Scalar>& row, Scalar* w) const {
    if (row.context.training) return perturbed(row, w, [&](index_t e) { return drawn(row, e); });
    std::fill_n(w, row.experts, Scalar(0));
    for (index_t m = 0; m < draws_.rows(); ++m) {
      perturbed(row, row.scratch, [&](index_t e) { return draws_(m, e); });
      for (index_t e = 0; e < row.experts; ++e) w[e] += row.scratch[e];
    }
    for (index_t e = 0; e < row.experts; ++e) w[e] /= static_cast<Scalar>(draws_.rows());
  }

  void backward(const mixture_row<Scalar>& row, const Scalar* w, const Scalar* dw, Scalar* dlogits) const {
    if (row.context.training) return add_gradient(row, w, dw, 1 / temperature_, dlogits);
    const Scalar share = 1 / (temperature_ * static_cast<Scalar>(draws_.rows()));
    for (index_t m = 0; m < draws_.rows(); ++m) {
      perturbed(row, row.scratch, [&](index_t e) { return draws_(m, e); });
      add_gradient(row, row.scratch, dw, share, dlogits);
    }
  }

  Scalar temperature() const noexcept { return temperature_; }
  /// The draws of inference, [M,E], which may be replaced.
  matrix_buffer<Scalar>& draws() noexcept { return draws_; }
  const matrix_buffer<Scalar>& draws() const noexcept { return draws_; }

private:
  static Scalar drawn(const mixture_row<Scalar>& row, index_t e) {
    return static_cast<Scalar>(row.context.random.gumbel(site, row.token * row.experts + e));
  }

  /// w = softmax((L + noise) / tau).
  template <typename Noise>
  void perturbed(const mixture_row<Scalar>& row, Scalar* w, Noise&& noise) const {
    for (index_t e = 0; e < row.experts; ++e) w[e] = (row.logits[e] + noise(e)) / temperature_;
    kernel::softmax(w, w, row.experts);
  }

  static void add_gradient(const mixture_row<Scalar>& row, const Scalar* w, const Scalar* dw, Scalar factor,
                           Scalar* dlogits) {
    Scalar inner = 0;
    for (index_t e = 0; e < row.experts; ++e) inner += w[e] * dw[e];
    for (index_t e = 0; e < row.experts; ++e) dlogits[e] += factor * w[e] * (dw[e] - inner);
  }

  Scalar temperature_;
  matrix_buffer<Scalar> draws_;
};

/// sluice::gumbel_softmax_router<float> router{64, 8, {.temperature = 0.5f}};
template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>>
class gumbel_softmax_router : public dense_mixture_router<GateType, gumbel_softmax_weights<Scalar>> {
  using base = dense_mixture_router<GateType, gumbel_softmax_weights<Scalar>>;

public:
  using options = typename gumbel_softmax_weights<Scalar>::options;

  /// A linear gate without bias.
  gumbel_softmax_router(index_t inputs, index_t experts, options o = {})
    requires std::constructible_from<GateType, index_t, index_t>
      : gumbel_softmax_router(GateType(inputs, experts), o) {}
  explicit gumbel_softmax_router(GateType gate, options o = {})
      : gumbel_softmax_router(gate.experts(), std::move(gate), o) {}

private:
  gumbel_softmax_router(index_t experts, GateType&& gate, options o)
      : base(std::move(gate), gumbel_softmax_weights<Scalar>(experts, o)) {}
};

static_assert(DifferentiableRouter<gumbel_softmax_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
