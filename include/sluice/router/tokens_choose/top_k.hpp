/// Top-k softmax router: each token goes to its k highest-scoring experts.
///
///   X [T,D] tokens   W [E,D] gate   L = X W^T [T,E]   p = softmax(L[t]) over all E experts   S = the k largest of L[t]
///
///   pre      w = p[e]                      rows sum to less than 1            V-MoE, Switch, OLMoE
///   post     w = softmax(L[t] over S)      rows sum to 1                      Shazeer 2017, Mixtral
///   renorm   w = p[e] / sum of p over S    rows sum to 1                      GShard, Qwen3
///            w = p[e] / N, N = (sum of p^q over S)^(1/q) with norm_order q other than 1       MegaBlocks
///   renorm_detached   the same, the sum being a constant in the gradient      mixture of attention heads
///   one      w = 1                         the gate only chooses              Union of Experts
///
/// post and renorm agree up to rounding, and up to the guard on renorm's denominator. All are then multiplied by
/// `scaling`.
/// Gradients: pre     dl[j] = p[j] (g[j] 1[j in S] - sum over S of p g)             dense over all experts
///            post    dl[j] = w[j] (g[j] - sum over S of w g)                        for j in S only
///            renorm_detached  pre's with w for p 1[j in S]: no derivative, by design, and k = 1 has one too
/// With k = 1, post and renorm weights are constantly 1 and the gate has no gradient from the output: such a router is
/// refused, when it is made or when a training call asks for k = 1, unless options.constant_weight says that this is
/// wanted (inference with published checkpoints; a gate that learns from its losses only). So is `one`, whatever k is.
/// Equal logits: the lower expert index wins; NaN counts as -infinity. T = 0 gives an empty plan. DeepSeek-V2's group
/// limit keeps the experts of the best groups only (router/tokens_choose/group_limit.hpp). Under noise p is that of what
/// was chosen by, or with weigh_clean that of the gate's own logits, as in the cluster study's theory (Chen et al. 2022,
/// arXiv:2208.02813), which takes no group limit.
/// Shazeer et al. 2017, arXiv:1701.06538, eq. 3-5 without noise; Riquelme et al. 2021, arXiv:2106.05974; Zhang et al.
/// 2022 (mixture of attention heads), arXiv:2210.05144; Gale et al. 2022 (MegaBlocks), arXiv:2211.15841.
#pragma once

#include <sluice/gate/linear.hpp>
#include <sluice/kernel/order.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/kernel/top_k.hpp>
#include <sluice/router/token_choice.hpp>
#include <sluice/router/tokens_choose/group_limit.hpp>

#include <algorithm>
#include <cmath>

namespace sluice::inline SLUICE_ISA {

enum class weighting { pre, post, renorm, renorm_detached, one };

/// The rule of top-k routing, for one token.
template <FloatOrDouble Scalar, index_t TopK = dynamic>
class softmax_rule {
public:
  struct options {
    index_t top_k = TopK == dynamic ? 2 : TopK;
    weighting weights = weighting::renorm;
    bool constant_weight = false;  ///< allow k = 1 with post or renorm, and one
    Scalar smallest_sum = 0;       ///< renorm divides by max(sum, smallest_sum) + added_to_sum
    Scalar added_to_sum = 0;
    Scalar scaling = 1;
    group_limit groups{};
    Scalar norm_order = 1;     ///< renorm divides by the q-norm of the chosen p; the sum is that of q = 1
    bool weigh_clean = false;  ///< weights are made of the logits before the noise
  };

  /// Throws std::invalid_argument if an option makes no sense.
  explicit softmax_rule(options o) : options_(o), top_k_(o.top_k) {
    if (TopK != dynamic && o.top_k != TopK)
      throw_invalid("the router's type fixes k = ", TopK, "; options ask for ", o.top_k);
    if (!detail::is_usable(o.scaling) || o.scaling == Scalar(0))
      throw_invalid("top-k weights cannot be scaled by ", o.scaling);
    for (const Scalar guard : {o.smallest_sum, o.added_to_sum})
      if (!detail::is_usable(guard) || guard < Scalar(0))
        throw_invalid("a guard on the sum of weights cannot be ", guard);
    if (!detail::is_usable(o.norm_order) || !(o.norm_order > Scalar(0)))
      throw_invalid("weights cannot be divided by a norm of order ", o.norm_order);
    if (o.weigh_clean && o.groups.limits())
      throw_invalid("a limit to ", o.groups.kept, " of ", o.groups.groups, " groups chooses by the scores that weigh");
    refuse_constant_weight(o.top_k);
  }

  index_t top_k() const noexcept { return top_k_.value(); }
  const options& settings() const noexcept { return options_; }
  void validate(index_t experts) const { options_.groups.validate(experts, top_k()); }
  void validate_call(const choice_call<Scalar>& call) const {
    options_.groups.validate(call.experts, call.k);
    if (call.context.training) refuse_constant_weight(call.k);
  }

  void score(const choice_row<Scalar>& row, Scalar* scores) const {
    kernel::softmax(weighed(row), scores, row.experts);
  }

  index_t choose(const choice_row<Scalar>& row, index_t* ids) const {
    if (options_.groups.limits())
      options_.groups.top_k(row.scores, row.scratch, row.experts, row.k, ids);
    else
      kernel::top_k(row.logits, row.experts, row.k, ids);
    return row.k;
  }

  bool weighs_clean() const noexcept { return options_.weigh_clean; }
  void weigh(const choice_row<Scalar>& row, std::span<const index_t> ids, Scalar* weights) const {
    const std::size_t count = ids.size();
    if (options_.weights == weighting::post) {
      for (std::size_t j = 0; j < count; ++j) weights[j] = weighed(row)[ids[j]];
      kernel::softmax(weights, weights, static_cast<index_t>(count));
    } else if (options_.weights == weighting::one) {
      std::fill_n(weights, count, Scalar(1));
    } else {
      for (std::size_t j = 0; j < count; ++j) weights[j] = row.scores[ids[j]];
      if (options_.weights != weighting::pre) {
        const Scalar total = denominator(norm_of(row.scores, ids));
        for (std::size_t j = 0; j < count; ++j) weights[j] /= total;
      }
    }
    for (std::size_t j = 0; j < count; ++j) weights[j] *= options_.scaling;
  }

  void backward(const choice_row<Scalar>& row, const weighed_experts<Scalar>& weighed, Scalar* dlogits) const {
    if (options_.weights == weighting::one) return;
    const auto& [ids, weights, dweights] = weighed;
    Scalar inner = 0;
    for (std::size_t j = 0; j < ids.size(); ++j) inner += weights[j] * dweights[j];
    for (std::size_t j = 0; j < ids.size(); ++j) dlogits[ids[j]] += weights[j] * dweights[j];
    if (options_.weights == weighting::post) {
      for (std::size_t j = 0; j < ids.size(); ++j) dlogits[ids[j]] -= weights[j] / options_.scaling * inner;
      return;
    }
    // w = scaling p / d with d = N + c, or d constant (pre: 1; renorm below its guard, or detached). The part of d that
    // moves with the chosen p is N / d; the rest of the softmax's own pull, 1 - N / d, is spread over all experts.
    const Scalar norm = norm_of(row.scores, ids);
    const bool divides = options_.weights == weighting::renorm && !(norm < options_.smallest_sum);
    const Scalar total = divides ? denominator(norm) : Scalar(1);
    if (divides)
      for (const index_t e : ids) dlogits[e] -= pull_of(row.scores[e], norm) / total * inner;
    const Scalar rest = divides ? options_.added_to_sum / total : Scalar(1);
    if (rest != Scalar(0))
      for (index_t e = 0; e < row.experts; ++e) dlogits[e] -= row.scores[e] * rest * inner;
  }

private:
  const Scalar* weighed(const choice_row<Scalar>& row) const { return options_.weigh_clean ? row.clean : row.logits; }

  void refuse_constant_weight(index_t k) const {
    if (options_.weights == weighting::one && !options_.constant_weight)
      throw_invalid("weights that are 1 give the gate no gradient; set constant_weight if that is wanted");
    const bool is_constant = options_.weights == weighting::post || options_.weights == weighting::renorm;
    if (k == 1 && is_constant && !options_.constant_weight)
      throw_invalid(
          "k = 1 with weights that are normalised over the choice gives every weight 1 and the gate no gradient; use "
          "weighting::pre, or set constant_weight");
  }

  /// N. Against the largest score, so that no power underflows or overflows on the way.
  Scalar norm_of(const Scalar* scores, std::span<const index_t> ids) const {
    Scalar sum = 0;
    if (options_.norm_order == Scalar(1)) {
      for (const index_t e : ids) sum += scores[e];
      return sum;
    }
    Scalar largest = 0;
    for (const index_t e : ids) largest = (std::max)(largest, scores[e]);
    if (largest == Scalar(0)) return 0;
    for (const index_t e : ids) sum += std::pow(scores[e] / largest, options_.norm_order);
    return largest * std::pow(sum, 1 / options_.norm_order);
  }

  /// p dN/dp of a chosen score, N (p / N)^q.
  Scalar pull_of(Scalar score, Scalar norm) const {
    if (options_.norm_order == Scalar(1) || norm == Scalar(0)) return score;
    return norm * std::pow(score / norm, options_.norm_order);
  }

  /// All chosen scores may have underflowed to zero, when only unlikely choices are left after a drop: then 0 / 1.
  Scalar denominator(Scalar sum) const {
    const Scalar guarded = (sum < options_.smallest_sum ? options_.smallest_sum : sum) + options_.added_to_sum;
    return guarded == Scalar(0) ? Scalar(1) : guarded;
  }

  options options_;
  SLUICE_NO_UNIQUE_ADDRESS extent<TopK> top_k_;
};

/// sluice::top_k_router<float> router{64, 8, {.top_k = 2}};
template <FloatOrDouble Scalar, index_t Experts = dynamic, index_t TopK = dynamic,
          typename GateType = linear_gate<Scalar>, typename Noise = no_noise<Scalar>,
          typename Capacity = dropless>
class top_k_router : public token_choice_router<GateType, softmax_rule<Scalar, TopK>, Noise, Capacity, Experts> {
  using base = token_choice_router<GateType, softmax_rule<Scalar, TopK>, Noise, Capacity, Experts>;
  static_assert(Experts == dynamic || TopK == dynamic || (1 <= TopK && TopK <= Experts),
                "sluice: top_k_router needs 1 <= TopK <= Experts");

public:
  using options = typename softmax_rule<Scalar, TopK>::options;

  /// A linear gate without bias from D inputs to E experts.
  explicit top_k_router(index_t inputs, index_t experts = Experts, options o = {})
    requires std::constructible_from<GateType, index_t, index_t>
      : base(GateType(inputs, experts), softmax_rule<Scalar, TopK>(o)) {}

  /// Any gate, noise and capacity policy.
  explicit top_k_router(GateType gate, options o = {}, Noise noise = {}, Capacity capacity = {},
                        weight_application<Scalar> application = {})
      : base(std::move(gate), softmax_rule<Scalar, TopK>(o), std::move(noise), std::move(capacity), application) {}
};

static_assert(explain_choice_rule<softmax_rule<float>, float>());
static_assert(DifferentiableRouter<top_k_router<float>>);
static_assert(DifferentiableRouter<top_k_router<double, 8, 2>>);

}  // namespace sluice::inline SLUICE_ISA
