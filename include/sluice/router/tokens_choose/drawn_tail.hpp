/// Top k of which the last m are drawn: a token keeps its best k - m experts, and in training meets m others at random.
///
///   S = the first k - m choices of another rule, and m experts drawn one after the other from all that are left,
///       each with probability ~ p[t,e] + 1e-6,  p the rule's scores        weights: that rule's own, of S
///
///   drawn_tail_router<float> router(linear_gate<float>(64, 8), softmax_rule<float>({.top_k = 2}), 1);
///
/// So experts that are seldom best get tokens all the same. Without training S is the rule's. Scores must not be
/// negative. A call whose k is m or less draws all k. The j-th draw of token t is draw E t + j at drawn_tail_site. The
/// gradient is exact for S. All else (ties, NaN, T = 0, causality) is the rule's and router/token_choice.hpp's. Zhang
/// et al. 2022 (mixture of attention heads), arXiv:2210.05144, released code.
#pragma once

#include <sluice/capacity/dropless.hpp>
#include <sluice/router/rule_decorator.hpp>
#include <sluice/router/token_choice.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include <algorithm>
#include <utility>

namespace sluice::inline SLUICE_ISA {

inline constexpr random_site drawn_tail_site{"drawn_tail_rule.draw"};

template <FloatOrDouble Scalar, typename Inner = softmax_rule<Scalar>>
class drawn_tail_rule : public rule_decorator<Scalar, Inner> {
public:
  /// Throws std::invalid_argument unless 1 <= drawn <= the inner rule's k.
  drawn_tail_rule(Inner inner, index_t drawn) : rule_decorator<Scalar, Inner>(std::move(inner)), drawn_(drawn) {
    if (drawn < 1 || drawn > this->top_k())
      throw_invalid("of k = ", this->top_k(), " experts 1 to k can be drawn, not ", drawn);
  }

  index_t drawn() const noexcept { return drawn_; }

  index_t choose(const choice_row<Scalar>& row, index_t* ids) const {
    const index_t count = this->inner().choose(row, ids);
    if (!row.context.training) return count;
    const index_t first = (std::max)(index_t{0}, count - drawn_);
    Scalar* const chances = row.scratch;  // the inner rule is done with it
    for (index_t e = 0; e < row.experts; ++e) chances[e] = row.scores[e] + Scalar(1e-6);
    for (index_t j = 0; j < first; ++j) chances[ids[j]] = 0;
    for (index_t j = first; j < count; ++j) {
      ids[j] = drawn_expert(row, chances, j);
      chances[ids[j]] = 0;
    }
    return count;
  }

private:
  static index_t drawn_expert(const choice_row<Scalar>& row, const Scalar* chances, index_t j) {
    double total = 0;
    for (index_t e = 0; e < row.experts; ++e) total += static_cast<double>(chances[e]);
    double rest = total * row.context.random.uniform(drawn_tail_site, row.token * row.experts + j);
    index_t last = -1;  // of rounding, the last one that can be
    for (index_t e = 0; e < row.experts; ++e) {
      if (!(chances[e] > Scalar(0))) continue;
      last = e;
      rest -= static_cast<double>(chances[e]);
      if (rest < 0) break;
    }
    return last;
  }

  index_t drawn_;
};

/// The rule over any gate, noise and capacity policy.
template <FloatOrDouble Scalar, typename Inner = softmax_rule<Scalar>, typename GateType = linear_gate<Scalar>,
          typename Noise = no_noise<Scalar>, typename Capacity = dropless>
class drawn_tail_router : public token_choice_router<GateType, drawn_tail_rule<Scalar, Inner>, Noise, Capacity> {
  using base = token_choice_router<GateType, drawn_tail_rule<Scalar, Inner>, Noise, Capacity>;

public:
  drawn_tail_router(GateType gate, Inner rule, index_t drawn, Noise noise = {}, Capacity capacity = {},
                    weight_application<Scalar> application = {})
      : base(std::move(gate), {std::move(rule), drawn}, std::move(noise), std::move(capacity), application) {}
};

static_assert(explain_choice_rule<drawn_tail_rule<float>, float>());
static_assert(DifferentiableRouter<drawn_tail_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
