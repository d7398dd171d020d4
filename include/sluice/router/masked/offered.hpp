/// From coarse to fine: of the experts that were offered to a token, the k best, weighed by a softmax over them.
///
///   offered to t: row t of context.expert_ids [T,K] (gate/offered.hpp)      S = the k largest of L[t] that are offered
///   w = softmax(L[t] over S)
///
///   offered_router<float> router(64, 8, {.top_k = 3});
///
/// MoVA's two stages: a language model names the vision encoders that suit a question, a gate over text and image
/// weighs them (layer/encoders/text_and_image_gate.hpp). Fewer offered than k: all of them; none: the token gets no
/// expert, and beside a residual_layer passes unchanged. The released code adds -10^6 to what is not offered and keeps
/// weights of 0, which is the same. With one expert its weight is constantly 1 and the gate has no gradient from there.
/// Ties go to the lower expert; NaN, padding and T = 0 as in router/token_choice.hpp. Zong et al. 2024, "MoVA: Adapting
/// Mixture of Vision Experts to Multimodal Context", arXiv:2404.13046.
#pragma once

#include <sluice/gate/offered.hpp>
#include <sluice/router/masked/id_mask.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>>
class offered_router : public token_choice_router<offered_gate<GateType>, visible_rule<Scalar, softmax_rule<Scalar>>> {
  using base = token_choice_router<offered_gate<GateType>, visible_rule<Scalar, softmax_rule<Scalar>>>;

public:
  struct options {
    index_t top_k = 3;
    bool constant_weight = false;  ///< allow k = 1, of which the gate learns nothing
  };

  offered_router(index_t inputs, index_t experts,
                 options o = {}) requires std::constructible_from<GateType, index_t, index_t>
      : offered_router(GateType(inputs, experts), o) {}
  explicit offered_router(GateType gate, options o = {})
      : base(offered_gate<GateType>(std::move(gate)),
             visible_rule<Scalar, softmax_rule<Scalar>>(softmax_rule<Scalar>(
                 {.top_k = o.top_k, .weights = weighting::post, .constant_weight = o.constant_weight}))) {}
};

static_assert(DifferentiableRouter<offered_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
