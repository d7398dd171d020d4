/// Top-p router: each token takes its best experts until their probabilities add up to a threshold.
///
///   X [T,D]   L = gate(X) [T,E]   p = softmax(L[t])   e_1, e_2, ... the experts by falling L[t,e]
///   S = the e_j whose mass before them, p[e_1] + ... + p[e_(j-1)], is < threshold; e_1 always;  at most k of them
///   w = p[e]                                          (weighting::pre, XMoE; post and renorm as in top_k_router)
///
/// S is the smallest set of best experts with a mass of at least the threshold: a sure token has one expert, an unsure
/// one many. A threshold <= 0 is top-1; at 1 all experts but those of probability 0 are taken, up to rounding of the
/// mass. What a token takes is sorted and planned: of 256 logits of deviation 1 a mass of 0.4 has 27, which makes this
/// 2 to 3 times a top-2 router. k is a bound, E unless options.top_k or a call says less, and plans have room for it.
/// Small experts, E times f of width H / f, are a matter of the experts.
///
/// Gradients: S is a constant, and those of the weights are top_k_router's for S. Equal logits: the lower expert. NaN,
/// padding, T = 0 as in router/token_choice.hpp. The same in training and inference. Causal without a capacity.
///
///   XMoE       xmoe_router<float> router(linear_gate<float>(D, E), {.threshold = 0.9}, {}, capacity)
///              position_capacity capacity(capacity_limit::xmoe({1, 2})): an overfull expert keeps those for whom it
///              ranks best, of equal ranks the lower token; loss switch_balance{.share = balance_share::first_choice}
///              placeholder: a zero_expert in an expert_union, whose number is given to capacity_limit::without_limit;
///              it takes mass and work off the others, and the loss counts it
///   Top-P      {.threshold = 0.4, .weights = ...} with entropy or balance losses
/// Yang et al. 2024, "XMoE: Sparse Models with Fine-grained and Adaptive Expert Selection", arXiv:2403.18926; Huang et
/// al. 2024, "Harder Tasks Need More Experts", arXiv:2403.07652.
#pragma once

#include <sluice/capacity/position.hpp>
#include <sluice/kernel/top_mass.hpp>
#include <sluice/router/token_choice.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

namespace sluice::inline SLUICE_ISA {

/// The rule of top-p routing, for one token.
template <FloatOrDouble Scalar>
class top_p_rule {
public:
  struct options {
    Scalar threshold = Scalar(0.9);
    index_t top_k = 0;  ///< the most experts a token may have; 0: all
    weighting weights = weighting::pre;
  };

  /// Throws std::invalid_argument if the threshold is no number or beyond 1, or top_k is not in 0..E.
  top_p_rule(index_t experts, options o)
      : threshold_(o.threshold),
        weigher_({.top_k = o.top_k == 0 ? experts : o.top_k, .weights = o.weights, .constant_weight = true}) {
    if (!detail::is_usable(o.threshold) || o.threshold > Scalar(1))
      throw_invalid("a mass of probabilities cannot reach ", o.threshold, ", only up to 1");
    if (o.top_k < 0 || o.top_k > experts)
      throw_invalid("a token can have 1 to E = ", experts, " experts at most (0: all), not ", o.top_k);
  }

  index_t top_k() const noexcept { return weigher_.top_k(); }
  Scalar threshold() const noexcept { return threshold_; }

  void score(const choice_row<Scalar>& row, Scalar* scores) const { weigher_.score(row, scores); }

  index_t choose(const choice_row<Scalar>& row, index_t* ids) const {
    const index_t few = kernel::top_mass(row.scores, row.logits, row.experts, threshold_, row.k, ids);
    Scalar mass = row.scores[ids[0]];
    for (index_t count = 1; count < row.k; ++count) {
      if (!(mass < threshold_)) return count;
      if (count == few) kernel::top_k(row.logits, row.experts, row.k, ids);  // a sum in another order rounds otherwise
      mass += row.scores[ids[count]];
    }
    return row.k;
  }

  void weigh(const choice_row<Scalar>& row, std::span<const index_t> ids, Scalar* weights) const {
    weigher_.weigh(row, ids, weights);
  }
  void backward(const choice_row<Scalar>& row, const weighed_experts<Scalar>& weighed, Scalar* dlogits) const {
    weigher_.backward(row, weighed, dlogits);
  }

private:
  Scalar threshold_;
  softmax_rule<Scalar> weigher_;
};

/// sluice::top_p_router<float> router{64, 8, {.threshold = 0.9f}};
template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>, typename Noise = no_noise<Scalar>,
          typename Capacity = dropless, index_t Experts = dynamic>
class top_p_router : public token_choice_router<GateType, top_p_rule<Scalar>, Noise, Capacity, Experts> {
  using base = token_choice_router<GateType, top_p_rule<Scalar>, Noise, Capacity, Experts>;

public:
  using options = typename top_p_rule<Scalar>::options;

  /// A linear gate without bias.
  explicit top_p_router(index_t inputs, index_t experts = Experts, options o = {})
    requires std::constructible_from<GateType, index_t, index_t> && std::default_initializable<Capacity>
      : top_p_router(GateType(inputs, experts), o) {}

  /// Any gate, noise and capacity policy.
  explicit top_p_router(const GateType& gate, options o = {}, Noise noise = {}, Capacity capacity = {})
      : base(gate, top_p_rule<Scalar>(gate.experts(), o), std::move(noise), std::move(capacity)) {}
};

template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>>
using xmoe_router = top_p_router<Scalar, GateType, no_noise<Scalar>, position_capacity>;

static_assert(explain_choice_rule<top_p_rule<float>, float>());
static_assert(DifferentiableRouter<top_p_router<float>> && DifferentiableRouter<xmoe_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
