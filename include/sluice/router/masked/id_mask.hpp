/// MaskMoE: frequent tokens choose among many experts, rare ones always have the same.
///
///   L' = L, but -infinity where the mask hides an expert from the token's id (gate/masked.hpp)   p = softmax(L'[t])
///   S = the k largest of L'[t] that are visible   w = p[e]
///
///   mask_moe_router<float> router(masked_gate<linear_gate<float>>(linear_gate<float>(64, 8), mask), {.top_k = 1});
///
/// A rare id that sees one expert has p = 1 there: its weight is 1 and it gives the gate no gradient. Fewer visible
/// experts than k: all of them, and the other choices stay empty. visible_rule does that for any rule that chooses best
/// first: experts whose logits are -infinity are no choice. Weights, gradients, ties, NaN and T = 0 are the rule's; a
/// token of which every logit is -infinity gets no expert. How frequent is frequent, and how many experts then are
/// visible, are the user's to say. Su et al. 2024, "MaskMoE: Boosting Token-Level Learning via Routing Mask",
/// arXiv:2407.09816.
#pragma once

#include <sluice/gate/linear.hpp>
#include <sluice/gate/masked.hpp>
#include <sluice/kernel/order.hpp>
#include <sluice/router/rule_decorator.hpp>
#include <sluice/router/token_choice.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

/// A rule to which experts with logits of -infinity are no choice.
template <FloatOrDouble Scalar, typename Inner>
class visible_rule : public rule_decorator<Scalar, Inner> {
  using base = rule_decorator<Scalar, Inner>;

public:
  using base::base;

  index_t choose(const choice_row<Scalar>& row, index_t* ids) const {
    const index_t count = base::choose(row, ids);
    index_t visible = 0;
    for (index_t j = 0; j < count; ++j)
      if (order_key(row.logits[ids[j]]) != -kernel::infinity_key<Scalar>) ids[visible++] = ids[j];
    return visible;
  }
};

template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>, typename Capacity = dropless>
class mask_moe_router : public token_choice_router<masked_gate<GateType>, visible_rule<Scalar, softmax_rule<Scalar>>,
                                                   no_noise<Scalar>, Capacity> {
  using base = token_choice_router<masked_gate<GateType>, visible_rule<Scalar, softmax_rule<Scalar>>, no_noise<Scalar>,
                                   Capacity>;

public:
  struct options {
    index_t top_k = 1;
  };

  explicit mask_moe_router(masked_gate<GateType> gate, options o = {}, Capacity capacity = {})
      : base(std::move(gate),
             visible_rule<Scalar, softmax_rule<Scalar>>(
                 softmax_rule<Scalar>({.top_k = o.top_k, .weights = weighting::pre})),
             {}, std::move(capacity)) {}
};

static_assert(explain_choice_rule<visible_rule<float, softmax_rule<float>>, float>());
static_assert(DifferentiableRouter<mask_moe_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
