/// Sinkhorn routers: scaled until experts are equally busy, the logits of all tokens together choose.
///
///   token choice    P = Sinkhorn coupling of L' (router/assigned/sinkhorn_coupling.hpp)   S = the k largest of P[t]
///   expert choice   the same P; expert e takes the C tokens with the largest P[t,e]
///
///                           coupling      inference           weights
///   vmoe(k)                 vmoe          the same, no noise  softmax of the logits before the noise, over all E
///   megatron(k)             megatron      top k of L          sigmoid(L) for k = 1, softmax(L) over all E for more
///   blackmamba()            blackmamba    top 1 of L          sigmoid(L)
///   s_base(k)               s_base        top k of L          sigmoid(L)
///
///   sinkhorn_router<float> router{64, 8};                          sinkhorn_router<float>::options::megatron(2)
///   sinkhorn_expert_choice_router<float> other{64, 8};             weights: softmax of the noisy logits
///
/// Weights are not renormalised over the choice. They may be the chosen entries of P instead (weigh_by_coupling, with
/// vmoe's coupling; where experts choose, score::coupled): then the gradient runs through the whole coupling. Otherwise
/// P is a constant, and dL is that of the softmax or the sigmoid. Ties, NaN, infinities, T = 0 and priority:
/// router/assigned/coupling.hpp and below it. Not causal. For the papers see the coupling.
#pragma once

#include <sluice/gate/linear.hpp>
#include <sluice/router/assigned/sinkhorn_coupling.hpp>
#include <sluice/router/experts_choose/expert_choice.hpp>
#include <sluice/router/token_choice.hpp>
#include <sluice/router/tokens_choose/sigmoid_top_k.hpp>

#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

struct sinkhorn_router_options {
  sinkhorn_options coupling = {};
  coupling_options choice = {.weigh_clean = true};
  expert_scores scores = expert_scores::softmax;  ///< that weigh

  static sinkhorn_router_options vmoe(index_t top_k) { return {.choice = {.top_k = top_k, .weigh_clean = true}}; }
  static sinkhorn_router_options megatron(index_t top_k) {
    return {.coupling = sinkhorn_options::megatron(),
            .choice = {.top_k = top_k, .training_only = true},
            .scores = top_k == 1 ? expert_scores::sigmoid : expert_scores::softmax};
  }
  static sinkhorn_router_options blackmamba() {
    return {.coupling = sinkhorn_options::blackmamba(),
            .choice = {.training_only = true},
            .scores = expert_scores::sigmoid};
  }
  static sinkhorn_router_options s_base(index_t top_k) {
    return {.coupling = sinkhorn_options::s_base(),
            .choice = {.top_k = top_k, .training_only = true},
            .scores = expert_scores::sigmoid};
  }
};

template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>, typename Noise = no_noise<Scalar>,
          typename Capacity = dropless>
class sinkhorn_router
    : public token_choice_router<GateType, coupling_rule<Scalar, sinkhorn_coupling<Scalar>, sigmoid_rule<Scalar>>,
                                 Noise, Capacity> {
  using rule_type = coupling_rule<Scalar, sinkhorn_coupling<Scalar>, sigmoid_rule<Scalar>>;
  using base = token_choice_router<GateType, rule_type, Noise, Capacity>;

public:
  using options = sinkhorn_router_options;

  /// A linear gate without bias.
  sinkhorn_router(index_t inputs, index_t experts, options o = {})
    requires std::constructible_from<GateType, index_t, index_t>
      : sinkhorn_router(GateType(inputs, experts), o) {}
  explicit sinkhorn_router(GateType gate, options o = {}, Noise noise = {}, Capacity capacity = {})
      : sinkhorn_router(gate.experts(), std::move(gate), o, std::move(noise), std::move(capacity)) {}

private:
  sinkhorn_router(index_t experts, GateType&& gate, const options& o, Noise&& noise, Capacity&& capacity)
      : base(
            std::move(gate),
            rule_type(sinkhorn_coupling<Scalar>(o.coupling),
                      sigmoid_rule<Scalar>(
                          experts,
                          {.top_k = o.choice.top_k, .renormalize = false, .selection_bias = false, .scores = o.scores}),
                      o.choice),
            std::move(noise), std::move(capacity)) {}
};

template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>, typename Noise = no_noise<Scalar>>
using sinkhorn_expert_choice_router = expert_choice_router<Scalar, GateType, Noise, sinkhorn_coupling<Scalar>>;

static_assert(DifferentiableRouter<sinkhorn_router<float>>);
static_assert(DifferentiableRouter<sinkhorn_expert_choice_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
