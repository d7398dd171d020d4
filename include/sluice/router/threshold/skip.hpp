/// Online skipping: of the experts that a token has chosen, those that hardly matter beside the best one are left out.
///
///   s the scores of another rule, S its choice;   S' = the e in S with s[e] >= ratio * max over S of s
///   weights: the rule's own, of S' alone: renormalised if the rule normalises over the choice
///
/// With top-2 this leaves out the second expert where w2 < ratio * w1. The weights of the rule must be in proportion to
/// its scores, as those of softmax_rule, top_p_rule and sigmoid_rule are. The best expert always stays; ratio 0 leaves
/// out none, 1 all but the best and its equals, more than 1 all but the first of the best. Left-out experts take no
/// slot from others. Tokens that the context protects (routing_context::protected_tokens) keep all. At inference only,
/// unless options.in_training is set; the gradient is the rule's for S'. Everything else (ties, NaN, T = 0, causality)
/// is the rule's.
///
///   skipping_router<float> router(gate, softmax_rule<float>({.top_k = 2}), {.ratio = 0.5f});
///
/// The published ratio of a layer is the median of w2 / w1 over calibration tokens: skip_calibration, which then leaves
/// out about half of the second experts. MC-MoE protects the 2 % of a prompt's tokens that matter most to the others,
/// and may leave out some that matter least: router/threshold/token_importance.hpp.
/// Eliseev, Mazur 2023, arXiv:2312.17238; Lu et al. 2024, arXiv:2402.14800; Huang et al. 2024 (MC-MoE),
/// arXiv:2410.06270.
#pragma once

#include <sluice/capacity/dropless.hpp>
#include <sluice/router/rule_decorator.hpp>
#include <sluice/router/token_choice.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include <algorithm>
#include <numeric>
#include <vector>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar, typename Inner = softmax_rule<Scalar>>
class skipping_rule : public rule_decorator<Scalar, Inner> {
public:
  struct options {
    Scalar ratio = Scalar(0.5);
    bool in_training = false;
  };

  /// Throws std::invalid_argument unless ratio >= 0; it may be infinite.
  skipping_rule(Inner inner, options o) : rule_decorator<Scalar, Inner>(std::move(inner)), options_(o) {
    if (is_nan(o.ratio) || o.ratio < Scalar(0))
      throw_invalid("experts are skipped below a share of 0 or more of the best score, not ", o.ratio);
  }

  index_t choose(const choice_row<Scalar>& row, index_t* ids) const {
    const index_t count = this->inner().choose(row, ids);
    if (row.context.training && !options_.in_training) return count;
    if (count < 2 || row.context.is_protected(row.token)) return count;
    index_t best = ids[0];
    for (index_t j = 1; j < count; ++j)
      if (row.scores[ids[j]] > row.scores[best]) best = ids[j];
    const Scalar least = options_.ratio * row.scores[best];
    return std::remove_if(ids, ids + count, [&](index_t e) { return e != best && row.scores[e] < least; }) - ids;
  }

private:
  options options_;
};

/// The rule's choices without what is skipped, over any gate, noise and capacity policy.
template <FloatOrDouble Scalar, typename Inner = softmax_rule<Scalar>, typename GateType = linear_gate<Scalar>,
          typename Noise = no_noise<Scalar>, typename Capacity = dropless>
class skipping_router : public token_choice_router<GateType, skipping_rule<Scalar, Inner>, Noise, Capacity> {
  using base = token_choice_router<GateType, skipping_rule<Scalar, Inner>, Noise, Capacity>;

public:
  using options = typename skipping_rule<Scalar, Inner>::options;

  skipping_router(GateType gate, Inner rule, options o = {}, Noise noise = {}, Capacity capacity = {},
                  weight_application<Scalar> application = {})
      : base(std::move(gate), {std::move(rule), o}, std::move(noise), std::move(capacity), application) {}
};

/// Finds the ratio of a layer from what a router that skips nothing chose for calibration tokens.
template <FloatOrDouble Scalar>
class skip_calibration {
public:
  /// Takes in the table of a call (tape.choices): w2 / w1 of every token that has two choices and w1 > 0.
  void add(const choice_table<Scalar>& choices) {
    if (choices.top_k < 2) return;
    for (index_t pair = 0; pair < choices.tokens * choices.top_k; pair += choices.top_k)
      if (choices.expert[pair + 1] != no_expert && choices.weight[pair] > Scalar(0))
        ratios_.push_back(choices.weight[pair + 1] / choices.weight[pair]);
  }

  index_t tokens() const noexcept { return static_cast<index_t>(ratios_.size()); }

  /// The median of the ratios so far, the mean of the middle two of an even number. Throws std::invalid_argument if
  /// there are none.
  Scalar ratio() const {
    if (ratios_.empty()) throw_invalid("no token with two experts was given to calibrate with");
    std::vector<Scalar> sorted = ratios_;
    std::sort(sorted.begin(), sorted.end());
    const std::size_t upper = sorted.size() / 2, lower = (sorted.size() - 1) / 2;
    return (sorted[lower] + sorted[upper]) / 2;
  }

private:
  std::vector<Scalar> ratios_;
};

static_assert(explain_choice_rule<skipping_rule<float>, float>());
static_assert(DifferentiableRouter<skipping_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
