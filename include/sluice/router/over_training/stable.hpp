/// StableMoE: a router that learns where to send tokens, and one that learns to foresee it by their ids and then takes
/// over.
///
///   L = X C^T [T,E]   w = sigmoid(L[t,e])   s' = distilled gate [T,E], by token ids (gate/token_id.hpp)
///
///   stage 1     training steps 0 .. first_stage - 1     e = the largest of L[t]
///   stage 2     training from then on, and inference    e = the largest of s'[t]; the distilled gate is frozen
///
/// The weight is always that of x and C. In stage 2 an id has the same expert in every context and at every step, which
/// is the point. Losses of stage 1 (loss/stable.hpp): stable_balance spreads the tokens, distillation teaches the
/// distilled gate; both are 0 in stage 2. A published layer blends, y = w f(x) + (1 - w) x, and what capacity drops
/// passes unchanged:
///
///   stable_router<float> router{linear_gate<float>{64, 8}, token_id_gate<float>{64, 8, 32000}, {.first_stage = 6000}};
///   residual_layer block{moe_layer{router, bank_of_change_experts, stable_balance{}, distillation{}}};
///
/// Gradients: dL[t,e] = g w (1 - w), the choice being a constant; the distilled gate learns from its loss alone.
/// Capacity is floor(cf T / E), first come, first served; cf = 2 unless said otherwise. k is 1. Ties: the lower expert.
/// NaN in a token or in L makes it invalid. T = 0 is fine. Needs token_ids, and the step in training. Not causal, for
/// capacity. C is linear_gate's weight (in the paper orthogonal rows of length 0.1 at first). Dai et al. 2022,
/// "StableMoE: Stable Routing Strategy for Mixture of Experts", arXiv:2204.08396.
#pragma once

#include <sluice/capacity/position.hpp>
#include <sluice/core/concepts.hpp>
#include <sluice/core/signals.hpp>
#include <sluice/gate/linear.hpp>
#include <sluice/gate/token_id.hpp>
#include <sluice/kernel/order.hpp>
#include <sluice/router/fixed/given.hpp>
#include <sluice/router/token_choice.hpp>
#include <sluice/router/tokens_choose/sigmoid_top_k.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

/// The rule of StableMoE: the expert that was given, or the best if none was.
template <FloatOrDouble Scalar>
class stable_rule : public given_rule<Scalar, sigmoid_rule<Scalar>> {
  using base = given_rule<Scalar, sigmoid_rule<Scalar>>;

public:
  explicit stable_rule(index_t experts)
      : base(sigmoid_rule<Scalar>(experts, {.top_k = 1, .renormalize = false, .selection_bias = false})) {}

  index_t top_k() const noexcept { return 1; }
  index_t top_k(const routing_context<Scalar>&) const noexcept { return 1; }
  void validate_call(const choice_call<Scalar>& call) const {
    if (call.k != 1) throw_invalid("a stable router gives a token one expert; the call asks for k = ", call.k);
    if (call.context.expert_ids) base::validate_call(call);
  }
  index_t choose(const choice_row<Scalar>& row, index_t* ids) const {
    if (row.context.expert_ids) return base::choose(row, ids);
    ids[0] = kernel::arg_max(row.logits, row.experts);
    return 1;
  }
};

/// What its losses see.
template <FloatOrDouble Scalar>
struct stable_signals : score_signals<Scalar> {
  matrix_buffer<Scalar> distilled;  ///< s' [T,E]
  bool is_first_stage = false;
};
template <FloatOrDouble Scalar>
struct stable_gradients : score_gradients<Scalar> {
  matrix_buffer<Scalar> distilled;

  void zero_like(const stable_signals<Scalar>& seen) {
    score_gradients<Scalar>::zero_like(seen);
    distilled.set_zero(seen.distilled.rows(), seen.distilled.cols());
  }
};

template <FloatOrDouble Scalar, typename Distilled = token_id_gate<Scalar>, typename GateType = linear_gate<Scalar>,
          typename Capacity = position_capacity>
class stable_router {
  static_assert(explain_differentiable_gate<Distilled>());
  using engine = token_choice_router<GateType, stable_rule<Scalar>, no_noise<Scalar>, Capacity>;

public:
  using scalar = Scalar;
  using plan = sparse_plan<Scalar>;
  static constexpr bool causal = engine::causal && is_causal<Distilled>;
  static constexpr bool exact_gradient = engine::exact_gradient;

  struct options {
    index_t first_stage = 6000;  ///< steps of training until the distilled gate takes over
  };

  struct tape {
    stable_signals<Scalar> seen;
    stable_gradients<Scalar> dseen;
    typename engine::tape base;
    typename Distilled::tape distilled;
    buffer<index_t> foreseen;  ///< [T] the largest of s'[t]
  };

  /// Throws std::invalid_argument if the gates differ in D or E, or first_stage is negative.
  stable_router(GateType gate, Distilled distilled, options o = {},
                Capacity capacity = Capacity(capacity_limit::vmoe(2.0, capacity_rounding::down, 0).at_least(1)))
      : stable_router(gate.experts(), std::move(gate), std::move(distilled), o, std::move(capacity)) {}

  index_t inputs() const noexcept { return base_.inputs(); }
  index_t experts() const noexcept { return base_.experts(); }
  index_t top_k() const noexcept { return 1; }

  bool is_first_stage(const routing_context<Scalar>& context) const noexcept {
    return context.training && options_.first_stage > context.step;
  }

  void route(tokens_in<Scalar> x, const routing_context<Scalar>& context, plan& p, tape& t) const {
    check_tokens(x, inputs(), context);
    t.seen.is_first_stage = is_first_stage(context);
    t.seen.distilled.resize(x.rows(), experts());
    distilled_.forward(x, context, t.seen.distilled.map(), t.distilled);
    t.foreseen.resize(x.rows());
    for (index_t token = 0; token < x.rows(); ++token)
      t.foreseen[token] = kernel::arg_max(t.seen.distilled.row(token), experts());
    base_.route(x, of_stage(context, t), p, t.base);
    static_cast<score_signals<Scalar>&>(t.seen) = t.base.seen;
  }

  void backward(tokens_in<Scalar> x, const routing_context<Scalar>& context, const plan& p,
                const typename plan::gradient& dplan, tape& t, tokens_out<Scalar> dx) {
    t.base.dseen.clean = t.dseen.clean;
    t.base.dseen.noisy = t.dseen.noisy;
    t.base.dseen.noise_std = t.dseen.noise_std;
    base_.backward(x, of_stage(context, t), p, dplan, t.base, dx);
    // Frozen before the optimiser's step, so that it does not decay either.
    detail::for_each_unnamed_parameter(distilled_, [&](auto& w) { w.set_frozen(!t.seen.is_first_stage); });
    if (t.seen.is_first_stage) distilled_.backward(x, context, t.dseen.distilled.map(), t.distilled, dx);
  }

  GateType& gate() noexcept { return base_.gate(); }
  const GateType& gate() const noexcept { return base_.gate(); }
  Distilled& distilled() noexcept { return distilled_; }
  const Distilled& distilled() const noexcept { return distilled_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    engine::visit_parameters(self.base_, visit);
    if constexpr (HasParameters<Distilled>) visit("distilled", self.distilled_);
  }

private:
  stable_router(index_t experts, GateType&& gate, Distilled&& distilled, options o, Capacity&& capacity)
      : base_(std::move(gate), stable_rule<Scalar>(experts), {}, std::move(capacity)),
        distilled_(std::move(distilled)),
        options_(o) {
    if (distilled_.experts() != experts || distilled_.inputs() != base_.inputs())
      throw_invalid("a stable router's gates need equal D and E, not ", base_.inputs(), ", ", experts, " and ",
                    distilled_.inputs(), ", ", distilled_.experts());
    if (o.first_stage < 0) throw_invalid("the first stage of a stable router cannot take ", o.first_stage, " steps");
  }

  /// What the base router is to follow: nobody in the first stage.
  routing_context<Scalar> of_stage(routing_context<Scalar> context, const tape& t) const {
    context.expert_ids = {};
    context.expert_weights = {};
    if (!t.seen.is_first_stage) context.expert_ids = {t.foreseen.data(), t.foreseen.size(), 1};
    return context;
  }

  engine base_;
  Distilled distilled_;
  options options_;
};

static_assert(DifferentiableRouter<stable_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
