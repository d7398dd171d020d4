/// Straight-through routing: the k best experts with weight exactly 1, whose scores learn as if they were weights.
///
///   S = the k largest of L[t]   w = 1 for e in S                   dl[t,e] += g[t,e] for e in S, g the gradient of w
///
/// Like AdvMoE's arg max: in the forward pass a one-hot vector, in the backward pass the scores themselves. With
/// all_experts a training call puts every expert into the plan, those outside S with weight 0, and then every score has
/// its estimate <dy, f_e(x)>, at the price of running all experts; the released code masks after computing them all and
/// so lets a gradient reach the chosen score only, the default here. No derivative by design. Equal logits: the lower
/// expert. NaN, padding, T = 0 as in router/token_choice.hpp.
/// Bengio et al. 2013, arXiv:1308.3432; Zhang et al. 2023 (AdvMoE), arXiv:2308.10110.
#pragma once

#include <sluice/gate/linear.hpp>
#include <sluice/kernel/top_k.hpp>
#include <sluice/router/token_choice.hpp>

#include <algorithm>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class straight_through_rule {
public:
  static constexpr bool exact_gradient = false;
  struct options {
    index_t top_k = 1;
    bool all_experts = false;  ///< training estimates a gradient for every score
  };

  straight_through_rule(index_t experts, options o) : experts_(experts), options_(o) {}

  index_t top_k() const noexcept { return options_.top_k; }
  index_t top_k(const routing_context<Scalar>& context) const noexcept {
    return options_.all_experts && context.training ? experts_ : options_.top_k;
  }
  void validate(index_t experts) const {
    if (experts != experts_) throw_invalid("the rule is for ", experts_, " experts, the router has E = ", experts);
  }
  /// k says how many experts have a weight: where all are in the plan, a call cannot.
  void validate_call(const choice_call<Scalar>& call) const {
    if (options_.all_experts && call.context.training && call.context.top_k != 0)
      throw_invalid("a training call with all experts cannot ask for k = ", call.context.top_k);
  }

  void score(const choice_row<Scalar>& row, Scalar* scores) const { std::copy_n(row.logits, row.experts, scores); }
  index_t choose(const choice_row<Scalar>& row, index_t* ids) const {
    kernel::top_k(row.logits, row.experts, row.k, ids);
    return row.k;
  }
  void weigh(const choice_row<Scalar>& row, std::span<const index_t> ids, Scalar* weights) const {
    const auto whole = static_cast<std::size_t>(options_.all_experts && row.context.training ? options_.top_k : row.k);
    for (std::size_t j = 0; j < ids.size(); ++j) weights[j] = j < whole ? Scalar(1) : Scalar(0);
  }
  void backward(const choice_row<Scalar>&, const weighed_experts<Scalar>& weighed, Scalar* dlogits) const {
    for (std::size_t j = 0; j < weighed.ids.size(); ++j) dlogits[weighed.ids[j]] += weighed.dweights[j];
  }

private:
  index_t experts_;
  options options_;
};

/// sluice::straight_through_router<float> router(64, 8);
template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>, typename Noise = no_noise<Scalar>>
class straight_through_router : public token_choice_router<GateType, straight_through_rule<Scalar>, Noise> {
  using base = token_choice_router<GateType, straight_through_rule<Scalar>, Noise>;

public:
  using options = typename straight_through_rule<Scalar>::options;

  straight_through_router(index_t inputs, index_t experts, options o = {})
    requires std::constructible_from<GateType, index_t, index_t>
      : straight_through_router(GateType(inputs, experts), o) {}
  explicit straight_through_router(const GateType& gate, options o = {}, Noise noise = {})
      : base(gate, straight_through_rule<Scalar>(gate.experts(), o), std::move(noise)) {}
};

static_assert(explain_choice_rule<straight_through_rule<float>, float>());
static_assert(DifferentiableRouter<straight_through_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
