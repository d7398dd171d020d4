/// Noisy top-k routers: the scores get normal noise in training, so that close experts take turns.
///
///   noisy_top_k_router           L' = L + (noise_std / E) z;  top-k of L', weights softmax(L')[e]  (`pre`)
///   learned_noise_top_k_router   L' = L + s z, s = softplus(x Wn^T) + epsilon;  top-k, softmax over those (`post`)
///
/// z [T,E] are draws at noise_site, position t*E + e. Inference adds no noise: then both are
/// top_k_router. Losses find the clean scores, the noisy ones and the noise's scale in the tape's signals. The learned
/// form allows k = 1, whose gate learns from its losses only. Ties, NaN and T = 0 as in top_k_router. Riquelme et al.
/// 2021, arXiv:2106.05974, eq. 2;  Shazeer et al. 2017, arXiv:1701.06538, eq. 3-5.
#pragma once

#include <sluice/router/tokens_choose/top_k.hpp>

namespace sluice::inline SLUICE_ISA {

/// sluice::noisy_top_k_router<float> router{64, 8, {.top_k = 2, .noise_std = 1}};
template <FloatOrDouble Scalar, index_t Experts = dynamic, index_t TopK = dynamic,
          typename GateType = linear_gate<Scalar>, typename Capacity = dropless>
class noisy_top_k_router
    : public token_choice_router<GateType, softmax_rule<Scalar, TopK>, gaussian_noise<Scalar>, Capacity, Experts> {
  using base = token_choice_router<GateType, softmax_rule<Scalar, TopK>, gaussian_noise<Scalar>, Capacity, Experts>;

public:
  struct options {
    index_t top_k = TopK == dynamic ? 2 : TopK;
    Scalar noise_std = 1;  ///< divided by E
  };

  explicit noisy_top_k_router(index_t inputs, index_t experts = Experts, options o = {}, Capacity capacity = {})
    requires std::constructible_from<GateType, index_t, index_t>
      : noisy_top_k_router(GateType(inputs, experts), o, std::move(capacity)) {}

  explicit noisy_top_k_router(GateType gate, options o = {}, Capacity capacity = {})
      : base(std::move(gate), softmax_rule<Scalar, TopK>({.top_k = o.top_k, .weights = weighting::pre}),
             gaussian_noise<Scalar>(o.noise_std), std::move(capacity)) {}
};

template <FloatOrDouble Scalar, index_t Experts = dynamic, index_t TopK = dynamic,
          typename GateType = linear_gate<Scalar>, typename Capacity = dropless>
class learned_noise_top_k_router
    : public token_choice_router<GateType, softmax_rule<Scalar, TopK>, learned_noise<Scalar>, Capacity, Experts> {
  using base = token_choice_router<GateType, softmax_rule<Scalar, TopK>, learned_noise<Scalar>, Capacity, Experts>;

public:
  struct options {
    index_t top_k = TopK == dynamic ? 2 : TopK;
    Scalar noise_epsilon = Scalar(0.01);
  };

  explicit learned_noise_top_k_router(index_t inputs, index_t experts = Experts, options o = {}, Capacity capacity = {})
    requires std::constructible_from<GateType, index_t, index_t>
      : learned_noise_top_k_router(GateType(inputs, experts), o, std::move(capacity)) {}

  explicit learned_noise_top_k_router(GateType gate, options o = {}, Capacity capacity = {})
      : learned_noise_top_k_router(gate.inputs(), gate.experts(), std::move(gate), o, std::move(capacity)) {}

private:
  learned_noise_top_k_router(index_t inputs, index_t experts, GateType&& gate, options o, Capacity&& capacity)
      : base(std::move(gate),
             softmax_rule<Scalar, TopK>({.top_k = o.top_k, .weights = weighting::post, .constant_weight = true}),
             learned_noise<Scalar>(inputs, experts, o.noise_epsilon), std::move(capacity)) {}
};

static_assert(DifferentiableRouter<noisy_top_k_router<float>>);
static_assert(DifferentiableRouter<learned_noise_top_k_router<double, 8, 2>>);

}  // namespace sluice::inline SLUICE_ISA
