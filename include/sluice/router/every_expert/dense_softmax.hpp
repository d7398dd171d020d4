/// Dense softmax router, the classic mixture of experts: every token goes to every expert, weighed by a softmax.
///
///   X [T,D]   L = gate(X) [T,E]   w[t] = softmax(L[t])   y[t] = sum over all e of w[t,e] * f_e(x[t])
///   dl[t,e] = w[t,e] (g[t,e] - sum over i of w[t,i] g[t,i]),  g the gradients of the weights
///
/// Nothing is chosen, so there are no ties, no k and no capacity, and the gradient is exact. With one router a task over
/// one bank of experts (expert/bank_ref.hpp) it is the gate of MMoE. An expert whose weight underflows to 0 is left out
/// of its token's sum. A token that holds NaN, or whose logits do, gets no expert and output NaN; one with an infinite
/// logit shares its mass among those. Padding is not routed. T = 0 is fine. A call may name no k but E.
/// Jacobs, Jordan, Nowlan, Hinton 1991, "Adaptive Mixtures of Local Experts"; Ma et al. 2018, "Modeling Task
/// Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts".
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/dense_plan.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/signals.hpp>
#include <sluice/core/token_screen.hpp>
#include <sluice/gate/linear.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>>
class dense_softmax_router {
  static_assert(explain_differentiable_gate<GateType>());

public:
  using scalar = Scalar;
  using plan = dense_plan<Scalar>;
  static constexpr bool causal = is_causal<GateType>;
  static constexpr bool exact_gradient = has_exact_gradient<GateType>;

  struct tape {
    score_signals<Scalar> seen;
    score_gradients<Scalar> dseen;
    token_screen<Scalar> screen;  ///< who is routed, and what the gate saw
    typename GateType::tape gate;
    matrix_buffer<Scalar> weights;  ///< [T,E] of the tokens that are routed
    matrix_buffer<Scalar> dlogits;
  };

  /// A linear gate without bias.
  dense_softmax_router(index_t inputs, index_t experts)
    requires std::constructible_from<GateType, index_t, index_t>
      : dense_softmax_router(GateType(inputs, experts)) {}
  explicit dense_softmax_router(GateType gate) : gate_(std::move(gate)) {}

  index_t inputs() const noexcept { return gate_.inputs(); }
  index_t experts() const noexcept { return gate_.experts(); }

  void route(tokens_in<Scalar> x, const routing_context<Scalar>& context, plan& p, tape& t) const {
    check_tokens(x, inputs(), context);
    if (context.top_k != 0 && context.top_k != experts())
      throw_invalid("dense_softmax_router uses all of E = ", experts(), " experts; the call asks for k = ",
                    context.top_k);
    t.seen.has_noise = false;
    t.seen.top_k = experts();
    t.seen.clean.resize(x.rows(), experts());
    t.weights.resize(x.rows(), experts());
    t.screen.score(
        x, context,
        [&](tokens_in<Scalar> seen) {
          gate_.forward(seen, t.screen.visible(context), t.seen.clean.map(), t.gate);
        },
        [&](index_t token) { return any_nan(t.seen.clean.row(token), experts()); }, shows_nan<GateType>);
    t.screen.spoil_invalid(t.seen.clean);
    p.reset(x.rows(), experts());
    for (index_t token = 0; token < x.rows(); ++token) {
      if (t.screen.is_invalid(token)) p.mark_invalid(token);
      if (t.screen.is_routed(token)) p.add(token);
    }
    p.finish();
    for_routed(p, context, [&](index_t token, index_t j) {
      Scalar* w = t.weights.row(token);
      kernel::softmax(t.seen.clean.row(token), w, experts());
      for (index_t e = 0; e < experts(); ++e) p.weight(e, j) = w[e];
    });
  }

  void backward(tokens_in<Scalar> x, const routing_context<Scalar>& context, const plan& p,
                const typename plan::gradient& dplan, tape& t, tokens_out<Scalar> dx) {
    t.dlogits = t.dseen.clean;
    for_routed(p, context, [&](index_t token, index_t j) {
      const Scalar* w = t.weights.row(token);
      Scalar inner = 0;
      for (index_t e = 0; e < experts(); ++e) inner += w[e] * dplan.weight[p.row(e, j)];
      for (index_t e = 0; e < experts(); ++e) t.dlogits(token, e) += w[e] * (dplan.weight[p.row(e, j)] - inner);
    });
    t.screen.clear_hidden(t.dlogits);
    gate_.backward(t.screen.of(x), context, t.dlogits.map(), t.gate, dx);
  }

  GateType& gate() noexcept { return gate_; }
  const GateType& gate() const noexcept { return gate_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<GateType>) visit("gate", self.gate_);
  }

private:
  static constexpr index_t token_block = 32;

  /// f(token, j) for every routed token, the j-th.
  template <typename F>
  void for_routed(const plan& p, const routing_context<Scalar>& context, F&& f) const {
    const auto tokens = p.routed_tokens();
    context.executor.parallel_blocks(static_cast<index_t>(tokens.size()), token_block, 16 * experts(),
                                     [&](index_t begin, index_t end) {
                                       for (index_t j = begin; j < end; ++j) f(tokens[as_size(j)], j);
                                     });
  }

  GateType gate_;
};

static_assert(DifferentiableRouter<dense_softmax_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
