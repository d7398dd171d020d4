/// Experts by rank: of the experts that a token prefers, those at given places of the order, such as the second best
/// alone.
///
///   ranks r0 < r1 < ..., 0 the best   S = the choices number r0, r1, ... of another rule that chooses max r + 1
///   weights: that rule's own, of S alone: renormalised if it normalises over the choice, so a single rank has weight 1
///
///   chosen_ranks_router<float> weak(gate, softmax_rule<float>({.top_k = 2}), {1});
///
/// Self-contrast (train/self_contrast.hpp) sets a model against itself with such a router, over the same gate and
/// experts (expert/bank_ref.hpp). Ranks that a token has no choice at are left out, if the rule chose fewer. A call's
/// k has to reach the last rank. With one rank and a normalising rule the weight is constant and the gate has no
/// gradient from the output: the method is one of inference. Everything else (ties, NaN, T = 0, causality, gradients
/// for S) is the rule's. Shi et al. 2024, "Unchosen Experts Can Contribute Too: Unleashing MoE Models' Power by
/// Self-Contrast", arXiv:2405.14507.
#pragma once

#include <sluice/capacity/dropless.hpp>
#include <sluice/router/rule_decorator.hpp>
#include <sluice/router/token_choice.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include <algorithm>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar, typename Inner = softmax_rule<Scalar>>
class chosen_ranks_rule : public rule_decorator<Scalar, Inner> {
public:
  /// Throws std::invalid_argument unless the ranks ascend from 0 or more to the inner rule's k - 1 or less.
  chosen_ranks_rule(Inner inner, std::vector<index_t> ranks)
      : rule_decorator<Scalar, Inner>(std::move(inner)), ranks_(std::move(ranks)) {
    if (ranks_.empty()) throw_invalid("chosen_ranks_rule needs a rank at least");
    for (std::size_t i = 0; i < ranks_.size(); ++i)
      if (ranks_[i] < 0 || (i > 0 && ranks_[i] <= ranks_[i - 1]))
        throw_invalid("ranks of experts have to ascend from 0 or more; number ", i, " is ", ranks_[i]);
    if (ranks_.back() >= this->top_k())
      throw_invalid("a rule that chooses k = ", this->top_k(), " experts has none of rank ", ranks_.back());
  }

  void validate_call(const choice_call<Scalar>& call) const {
    if (call.k <= ranks_.back()) throw_invalid("a call for k = ", call.k, " experts has none of rank ", ranks_.back());
    rule_decorator<Scalar, Inner>::validate_call(call);
  }

  index_t choose(const choice_row<Scalar>& row, index_t* ids) const {
    const index_t count = this->inner().choose(row, ids);
    index_t kept = 0;
    for (const index_t rank : ranks_)
      if (rank < count) ids[kept++] = ids[rank];  // ascending, so nothing is written over before it is read
    return kept;
  }

  const std::vector<index_t>& ranks() const noexcept { return ranks_; }

private:
  std::vector<index_t> ranks_;
};

/// The rule's choices of some ranks, over any gate, noise and capacity policy.
template <FloatOrDouble Scalar, typename Inner = softmax_rule<Scalar>, typename GateType = linear_gate<Scalar>,
          typename Noise = no_noise<Scalar>, typename Capacity = dropless>
class chosen_ranks_router : public token_choice_router<GateType, chosen_ranks_rule<Scalar, Inner>, Noise, Capacity> {
  using base = token_choice_router<GateType, chosen_ranks_rule<Scalar, Inner>, Noise, Capacity>;

public:
  chosen_ranks_router(GateType gate, Inner rule, std::vector<index_t> ranks, Noise noise = {}, Capacity capacity = {},
                      weight_application<Scalar> application = {})
      : base(std::move(gate), {std::move(rule), std::move(ranks)}, std::move(noise), std::move(capacity), application) {
  }
};

static_assert(explain_choice_rule<chosen_ranks_rule<float>, float>());
static_assert(DifferentiableRouter<chosen_ranks_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
