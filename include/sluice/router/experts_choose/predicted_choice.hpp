/// Predicted choice: expert choice for decoding token by token; a small gate foretells which experts would take it.
///
///   taught_choice_router     routes as experts choose; beside that Z = predictor(x) [T,E], which a loss teaches
///                            whether e takes t (loss/membership.hpp). Z's gradient stops at x: the model learns
///                            nothing from it
///   predicted_choice_router  token t goes to e where Z[t,e] > 0, that is sigmoid(Z) > 1/2; w is the sigmoid of the
///                            gate's logit. Made by taught.predicted(); for inference, causal, no capacity; a token may
///                            have no expert
///
/// A taught router has two gates: the predictor's H (D + E) products and H activations a token, H = 8E unless told,
/// come on top of the D E of the other. Scores must not look at other tokens: sigmoid. Of a token's experts the one
/// with the lowest index has rank 0. With modalities only experts of the token's own count. Padding, NaN and T = 0 as
/// in expert_choice.hpp; NaN in Z makes a token invalid when predicting. The predictor is trained after the model,
/// which is frozen then. Lin et al. 2024 (MoMa's auxiliary routers), arXiv:2407.21770; Raposo et al. 2024,
/// arXiv:2404.02258.
#pragma once

#include <sluice/gate/two_layer.hpp>
#include <sluice/router/experts_choose/expert_choice.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

/// What losses see of a taught router: also what the predictor says.
template <FloatOrDouble Scalar>
struct taught_signals : score_signals<Scalar> {
  matrix_buffer<Scalar> predicted;  ///< [T,E] Z
  const modality_experts* modalities = nullptr;
};
template <FloatOrDouble Scalar>
struct taught_gradients : score_gradients<Scalar> {
  matrix_buffer<Scalar> predicted;

  void zero_like(const taught_signals<Scalar>& seen) {
    score_gradients<Scalar>::zero_like(seen);
    predicted.set_zero(seen.predicted.rows(), seen.predicted.cols());
  }
};

/// Routes by what a predictor says of each token alone. For inference.
template <FloatOrDouble Scalar, typename GateType, typename Predictor>
class predicted_choice_router {
public:
  using scalar = Scalar;
  using plan = sparse_plan<Scalar>;
  static constexpr bool causal = is_causal<GateType> && is_causal<Predictor>;

  struct tape {
    token_screen<Scalar> screen;
    typename GateType::tape gate;
    typename Predictor::tape predictor;
    matrix_buffer<Scalar> logits, predicted;
  };

  predicted_choice_router(GateType gate, Predictor predictor, modality_experts modalities)
      : gate_(std::move(gate)), predictor_(std::move(predictor)), modalities_(std::move(modalities)) {}

  index_t inputs() const noexcept { return gate_.inputs(); }
  index_t experts() const noexcept { return gate_.experts(); }

  void route(tokens_in<Scalar> x, const routing_context<Scalar>& context, plan& p, tape& t) const {
    check_tokens(x, inputs(), context);
    modalities_.validate_call(context, x.rows());
    if (context.top_k != 0) throw_invalid("predicted_choice_router has no k; the call asks for k = ", context.top_k);
    for (auto* m : {&t.logits, &t.predicted}) m->resize(x.rows(), experts());
    t.screen.score(
        x, context,
        [&](tokens_in<Scalar> seen) {
          const auto visible = t.screen.visible(context);
          gate_.forward(seen, visible, t.logits.map(), t.gate);
          predictor_.forward(seen, visible, t.predicted.map(), t.predictor);
        },
        [&](index_t token) {
          return any_nan(t.logits.row(token), experts()) || any_nan(t.predicted.row(token), experts());
        });
    p.reset(x.rows(), experts(), x.rows() * experts());
    for (index_t token = 0; token < x.rows(); ++token) {
      if (t.screen.is_invalid(token)) p.mark_invalid(token);
      if (!t.screen.is_routed(token)) continue;
      const auto [first, count] = modalities_.of(modalities_.modality(context, token), experts());
      index_t rank = 0;
      for (index_t e = first; e < first + count; ++e)
        if (t.predicted(token, e) > Scalar(0)) p.add(token, e, kernel::logistic(t.logits(token, e)), rank++);
    }
    p.finish();
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<GateType>) visit("gate", self.gate_);
    if constexpr (HasParameters<Predictor>) visit("predictor", self.predictor_);
  }

private:
  GateType gate_;
  Predictor predictor_;
  modality_experts modalities_;
};

/// Experts choose, and a predictor learns what they choose.
template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>, typename Noise = no_noise<Scalar>,
          typename Predictor = two_layer_gate<Scalar>>
class taught_choice_router {
  static_assert(explain_differentiable_gate<Predictor>());

public:
  using scalar = Scalar;
  using teacher_type = expert_choice_router<Scalar, GateType, Noise>;
  using plan = typename teacher_type::plan;
  static constexpr bool causal = false;
  static constexpr bool exact_gradient = has_exact_gradient<teacher_type> && has_exact_gradient<Predictor>;

  struct tape {
    taught_signals<Scalar> seen;
    taught_gradients<Scalar> dseen;
    typename teacher_type::tape teacher;
    typename Predictor::tape predictor;
    matrix_buffer<Scalar> dx;  ///< of the predictor, which stops here
  };

  /// Throws std::invalid_argument if the predictor is for other sizes, or scores are not sigmoids.
  taught_choice_router(teacher_type teacher, Predictor predictor)
      : teacher_(std::move(teacher)), predictor_(std::move(predictor)) {
    if (predictor_.inputs() != teacher_.inputs() || predictor_.experts() != teacher_.experts())
      throw_invalid("the predictor has D = ", predictor_.inputs(), ", E = ", predictor_.experts(),
                    ", the router D = ", teacher_.inputs(), ", E = ", teacher_.experts());
    if (teacher_.settings().scores != teacher_type::score::sigmoid)
      throw_invalid("experts can be foretold a weight by sigmoid scores only");
  }

  index_t inputs() const noexcept { return teacher_.inputs(); }
  index_t experts() const noexcept { return teacher_.experts(); }

  void route(tokens_in<Scalar> x, const routing_context<Scalar>& context, plan& p, tape& t) const {
    teacher_.route(x, context, p, t.teacher);
    static_cast<score_signals<Scalar>&>(t.seen) = t.teacher.seen;
    t.seen.modalities = &teacher_.settings().modalities;
    t.seen.predicted.resize(x.rows(), experts());
    predictor_.forward(t.teacher.screen.of(x), t.teacher.screen.visible(context), t.seen.predicted.map(), t.predictor);
    t.teacher.screen.clear_hidden(t.seen.predicted);
  }

  void backward(tokens_in<Scalar> x, const routing_context<Scalar>& context, const plan& p,
                const typename plan::gradient& dplan, tape& t, tokens_out<Scalar> dx) {
    t.teacher.dseen = t.dseen;
    teacher_.backward(x, context, p, dplan, t.teacher, dx);
    t.dx.set_zero(x.rows(), inputs());
    t.teacher.screen.clear_hidden(t.dseen.predicted);
    predictor_.backward(t.teacher.screen.of(x), t.teacher.screen.visible(context), t.dseen.predicted.map(), t.predictor,
                        t.dx.map());
  }

  /// The same gates as a router that foretells.
  predicted_choice_router<Scalar, GateType, Predictor> predicted() const {
    return {teacher_.gate(), predictor_, teacher_.settings().modalities};
  }

  teacher_type& teacher() noexcept { return teacher_; }
  Predictor& predictor() noexcept { return predictor_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    teacher_type::visit_parameters(self.teacher_, visit);
    if constexpr (HasParameters<Predictor>) visit("predictor", self.predictor_);
  }

private:
  teacher_type teacher_;
  Predictor predictor_;
};

static_assert(DifferentiableRouter<taught_choice_router<float>>);
static_assert(RouterPolicy<predicted_choice_router<float, linear_gate<float>, two_layer_gate<float>>>);

}  // namespace sluice::inline SLUICE_ISA
