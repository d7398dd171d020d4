/// Dense mixtures: every token goes to every expert, with weights that a function makes of its row of logits.
///
///   X [T,D]   L = gate(X) [T,E]   w[t] = weights(L[t])   y[t] = sum over all e of w[t,e] * f_e(x[t])
///
/// The function is a policy, const and called for many tokens at once:
///   weigh(row, w)                      fills w [E]
///   backward(row, w, dw, dlogits)      adds the gradient of the logits, given dw [E] of the weights, into dlogits [E]
/// and, where it wants,
///   validate(E)                        throws if it does not fit
/// A policy that learns something belongs behind the gate instead (gate/decorator.hpp), as temperatures and offsets do.
///
///   softmax_weights          dense_softmax.hpp      the classic mixture; MMoE
///   sigmoid_weights          dense_sigmoid.hpp      experts do not compete
///   gumbel_softmax_weights   gumbel_softmax.hpp     softmax of perturbed logits
///
/// Nothing is chosen, so there are no ties, no k and no capacity. A weight of 0 leaves its expert out of the token's
/// sum. A token that holds NaN, or whose logits do, gets no expert and output NaN. Padding is not routed. T = 0 is
/// fine. A call may name no k but E. Jacobs, Jordan, Nowlan, Hinton 1991, "Adaptive Mixtures of Local Experts".
#pragma once

#include <sluice/core/dense_plan.hpp>
#include <sluice/router/scored_router.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

/// One token of a call, as the weights of a mixture see it.
template <FloatOrDouble Scalar>
struct mixture_row {
  const routing_context<Scalar>& context;
  index_t experts;  ///< E
  index_t token;
  const Scalar* logits;  ///< [E] the gate's
  Scalar* scratch;       ///< [2E] for any use within one function; holds anything
};

/// Makes weights of one token's logits.
template <typename W, typename Scalar>
concept MixtureWeights = requires(const W& weights, const mixture_row<Scalar>& row, Scalar* out, const Scalar* in) {
  weights.weigh(row, out);
  weights.backward(row, in, in, out);
};

/// static_assert(explain_mixture_weights<my_weights, float>()): the first error says what is asked for.
template <typename W, typename Scalar>
consteval bool explain_mixture_weights() {
  static_assert(MixtureWeights<W, Scalar>,
                "sluice: the weights of a dense mixture need `void weigh(const mixture_row<scalar>&, scalar* w) const` "
                "and `void backward(const mixture_row<scalar>&, const scalar* w, const scalar* dw, scalar* dlogits) "
                "const`, for the scalar of the gate");
  return MixtureWeights<W, Scalar>;
}

template <typename GateType, typename Weights>
class dense_mixture_router : public scored_router<GateType> {
  using base = scored_router<GateType>;
  static_assert(explain_mixture_weights<Weights, typename base::scalar>());

public:
  using scalar = typename base::scalar;
  using plan = dense_plan<scalar>;
  using base::experts;

  struct tape : base::tape {
    matrix_buffer<scalar> weights;  ///< [T,E] of the tokens that are routed
    matrix_buffer<scalar> scratch;  ///< [blocks of tokens, 3E]
  };

  explicit dense_mixture_router(GateType gate, Weights weights = {})
      : base(std::move(gate)), weights_(std::move(weights)) {
    if constexpr (requires { weights_.validate(experts()); }) weights_.validate(experts());
  }

  void route(tokens_in<scalar> x, const routing_context<scalar>& context, plan& p, tape& t) const {
    if (context.top_k != 0 && context.top_k != experts())
      throw_invalid("a dense mixture uses all of E = ", experts(), " experts; the call asks for k = ", context.top_k);
    this->score(x, context, t);
    t.seen.top_k = experts();
    t.weights.resize(x.rows(), experts());
    t.scratch.resize((x.rows() + token_block - 1) / token_block, 3 * experts());
    p.reset(x.rows(), experts());
    for (index_t token = 0; token < x.rows(); ++token) {
      if (t.screen.is_invalid(token)) p.mark_invalid(token);
      if (t.screen.is_routed(token)) p.add(token);
    }
    p.finish();
    for_routed(p, context, t, [&](const mixture_row<scalar>& row, index_t j, scalar*) {
      scalar* w = t.weights.row(row.token);
      weights_.weigh(row, w);
      for (index_t e = 0; e < experts(); ++e) p.weight(e, j) = w[e];
    });
  }

  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, const plan& p,
                const typename plan::gradient& dplan, tape& t, tokens_out<scalar> dx) {
    this->start_back(t);
    for_routed(p, context, t, [&](const mixture_row<scalar>& row, index_t j, scalar* dw) {
      for (index_t e = 0; e < experts(); ++e) dw[e] = dplan.weight[p.row(e, j)];
      weights_.backward(row, t.weights.row(row.token), dw, t.dlogits.row(row.token));
    });
    this->pull_back(x, context, t, dx);
  }

  Weights& weights() noexcept { return weights_; }
  const Weights& weights() const noexcept { return weights_; }

private:
  static constexpr index_t token_block = 32;

  /// f(row, j, room for E numbers) for every routed token, the j-th.
  template <typename F>
  void for_routed(const plan& p, const routing_context<scalar>& context, tape& t, F&& f) const {
    const auto tokens = p.routed_tokens();
    context.executor.parallel_blocks(
        static_cast<index_t>(tokens.size()), token_block, 16 * experts(), [&](index_t begin, index_t end) {
          scalar* room = t.scratch.row(begin / token_block);
          for (index_t j = begin; j < end; ++j) {
            const index_t token = tokens[as_size(j)];
            f(mixture_row<scalar>{context, experts(), token, t.seen.clean.row(token), room + experts()}, j, room);
          }
        });
  }

  SLUICE_NO_UNIQUE_ADDRESS Weights weights_;
};

}  // namespace sluice::inline SLUICE_ISA
