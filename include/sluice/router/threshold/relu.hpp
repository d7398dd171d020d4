/// ReLU router (ReMoE): the weight of an expert is the positive part of its logit, and whatever is positive is active.
///
///   X [T,D]   L = gate(X) [T,E]   w[t,e] = max(L[t,e], 0)   active where L[t,e] > 0
///   y[t] = sum over the active e of w[t,e] * f_e(x[t])            no softmax, no normalisation, no k, no capacity
///   dl[t,e] = g[t,e] where active, else 0
///
/// How many experts a token gets is up to the logits: about half of them at first, so a plan has up to T·E assignments
/// early in training, for which room is made at once. loss/relu_l1.hpp brings the number down to a target. The output
/// is continuous where a logit crosses 0. A token without positive logits gets no expert and output zero; an expert
/// whose logits are negative for every token has no gradient. Of a token's experts the one with the lowest index has
/// rank 0. A token that holds NaN, or whose logits do, gets no expert and output NaN. Padding is not routed. A call may
/// not name a k. Input jitter is a matter of the gate. Wang, Zhu, Chen 2024, "ReMoE: Fully Differentiable
/// Mixture-of-Experts with ReLU Routing", arXiv:2412.14711.
#pragma once

#include <sluice/core/sparse_plan.hpp>
#include <sluice/gate/linear.hpp>
#include <sluice/router/scored_router.hpp>

#include <algorithm>
#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>>
class relu_router : public scored_router<GateType> {
  using base = scored_router<GateType>;

public:
  using plan = sparse_plan<Scalar>;
  using typename base::tape;

  /// A linear gate without bias.
  relu_router(index_t inputs, index_t experts)
    requires std::constructible_from<GateType, index_t, index_t>
      : relu_router(GateType(inputs, experts)) {}
  explicit relu_router(GateType gate) : base(std::move(gate)) {}

  void route(tokens_in<Scalar> x, const routing_context<Scalar>& context, plan& p, tape& t) const {
    if (context.top_k != 0) throw_invalid("relu_router has no k; the call asks for k = ", context.top_k);
    this->score(x, context, t);
    const index_t tokens = x.rows();
    const index_t experts = this->experts();
    p.reset(tokens, experts);
    for (index_t token = 0; token < tokens; ++token)
      if (t.screen.is_invalid(token)) p.mark_invalid(token);
    const matrix_buffer<Scalar>& logits = t.seen.clean;
    p.assign_positive([&](index_t token) { return t.screen.is_routed(token) ? logits.row(token) : nullptr; },
                      [&](index_t token, index_t e) { return logits(token, e); });
    // What losses may use as k: the mean number of experts a token got, rounded.
    t.seen.top_k = tokens == 0 ? 1 : (std::max<index_t>)(1, (2 * p.size() + tokens) / (2 * tokens));
  }

  void backward(tokens_in<Scalar> x, const routing_context<Scalar>& context, const plan& p,
                const typename plan::gradient& dplan, tape& t, tokens_out<Scalar> dx) {
    this->start_back(t);
    for (index_t i = 0; i < p.size(); ++i) t.dlogits(p.token(i), p.expert(i)) += dplan.weight[i];
    this->pull_back(x, context, t, dx);
  }
};

static_assert(DifferentiableRouter<relu_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
