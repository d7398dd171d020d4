/// Expert-choice router: every expert takes the C tokens of a group that like it most.
///
///   X [T,D]   gate E x D   L = gate(X) [T,E]   L' = noise(L)   p [T,E] scores of L' and weights w of them, by
///   options.scores (router/experts_choose/choice_scores.hpp, which has the gradients):
///     softmax      p = softmax of L'[t] over the experts            w = p            the paper
///     sigmoid      p = sigmoid(L')                                  w = p            MoMa
///     over_tokens  p = softmax of L'[:,e] over the group's tokens   w = p            pMoE
///     over_taken   p = L'           w = softmax of L'[:,e] over the tokens that e takes
///     even         p = L'           w = 1, no gradient
///   expert e takes the C tokens with the largest p[t,e], best first (slots in that order)
///   y[t] = sum over the experts that took t of w * f_e(x[t])          weights are not renormalised
///
/// C comes from the group's T without padding: C = ceil(cf T / E), where cf is the mean number of experts a token gets,
/// 2 in the paper (capacity_limit::vmoe, which can also raise it to a multiple); C < 1 throws, and C beyond the group's
/// tokens means all of them. The load is even by construction; a token may get no expert (output zero) or all of them.
/// Of a token's experts the one with the lowest index has rank 0. Weights may act on inputs (weight_application).
/// The choice is a constant for gradients.
///
/// Equal scores: the lower token. Padding is never taken, so an expert that runs out of tokens leaves slots empty. A
/// token with NaN among its logits counts as -infinity, is never taken either, and has output NaN. The choice depends
/// on all tokens of the group, later ones too: not causal. A call may not name a k. options.cap bounds the experts of a
/// token (router/experts_choose/token_cap.hpp). With options.modalities experts and tokens of different modalities do
/// not meet (router/masked/modality_experts.hpp): T, E and softmaxes above are then those of one modality.
/// What experts compare may be something else than p: a coupling of all tokens with all experts
/// (router/assigned/coupling.hpp), of which each takes the C largest entries of its column; weights stay what they are,
/// or with score::coupled are these entries. A coupling goes with neither cap nor modalities.
/// Zhou et al. 2022, "Mixture-of-Experts with Expert Choice Routing", arXiv:2202.09368; noise and capacity
/// rounding as in V-MoE, arXiv:2106.05974; sigmoid scores as in MoMa, arXiv:2407.21770; softmax over tokens as in pMoE,
/// arXiv:2306.04073 (router/experts_choose/patch_level.hpp).
#pragma once

#include <sluice/capacity/capacity_limit.hpp>
#include <sluice/core/concepts.hpp>
#include <sluice/core/signals.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/core/token_screen.hpp>
#include <sluice/gate/linear.hpp>
#include <sluice/router/assigned/coupling.hpp>
#include <sluice/router/experts_choose/choice_scores.hpp>
#include <sluice/router/experts_choose/token_cap.hpp>
#include <sluice/router/experts_choose/token_queues.hpp>
#include <sluice/router/masked/modality_experts.hpp>
#include <sluice/router/noise.hpp>
#include <sluice/router/weight_application.hpp>

#include <algorithm>
#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

/// In place of a coupling: experts compare the scores themselves.
struct no_coupling {
  struct tape {};
};

template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>, typename Noise = no_noise<Scalar>,
          typename Compared = no_coupling>
class expert_choice_router {
  static_assert(explain_differentiable_gate<GateType>());
  static_assert(explain_noise<Noise, Scalar>());
  static constexpr bool compares_scores = std::same_as<Compared, no_coupling>;
  static constexpr bool has_coupled_gradient = DifferentiableCoupling<Compared, Scalar>;
  static_assert(compares_scores || Coupling<Compared, Scalar>,
                "sluice: experts compare no_coupling or a coupling; explain_coupling<yours, scalar>() says what is "
                "missing");

public:
  using scalar = Scalar;
  using plan = sparse_plan<Scalar>;
  static constexpr bool causal = false;
  static constexpr bool exact_gradient = has_exact_gradient<GateType>;

  using score = expert_choice_score;
  struct options {
    capacity_limit capacity = capacity_limit::vmoe(2.0, capacity_rounding::up, 0);
    score scores = score::softmax;
    token_cap cap{};                ///< at most so many experts a token
    modality_experts modalities{};  ///< experts take tokens of their modality only
  };

  struct tape : choice_score_memory<Scalar> {
    score_signals<Scalar> seen;
    score_gradients<Scalar> dseen;
    token_screen<Scalar> screen;  ///< who is routed, and what the gate saw
    typename GateType::tape gate;
    typename Noise::tape noise;
    matrix_buffer<Scalar> dnoisy;
    matrix_buffer<Scalar> dclean;
    token_queues<Scalar> queues;
    buffer<index_t> rank;  ///< scratch: experts that each token has so far
    typename Compared::tape compared;
    matrix_buffer<Scalar> dcoupling;  ///< [T,E] for score::coupled
  };

  /// A linear gate without bias.
  expert_choice_router(index_t inputs, index_t experts, options o = {})
    requires std::constructible_from<GateType, index_t, index_t>
      : expert_choice_router(GateType(inputs, experts), std::move(o)) {}
  explicit expert_choice_router(GateType gate, options o = {}, Noise noise = Noise{},
                                weight_application<Scalar> application = {}, Compared compared = Compared{})
      : gate_(std::move(gate)),
        noise_(std::move(noise)),
        options_(std::move(o)),
        application_(application),
        compared_(std::move(compared)) {
    options_.cap.validate();
    options_.modalities.validate(experts());
    if (!detail::is_usable(application.input_factor))
      throw_invalid("inputs cannot be multiplied by ", application.input_factor);
    if (options_.cap.most > 0 && (options_.scores == score::over_taken || options_.scores == score::even))
      throw_invalid("a cap on a token's experts needs scores within 0 and 1; these are logits");
    if (!compares_scores && (options_.cap.most > 0 || options_.modalities.divides()))
      throw_invalid("experts that compare a coupling have no cap on a token's experts, and no modalities");
    if (options_.scores == score::coupled && !can_weigh())
      throw_invalid("experts cannot weigh by what they compare: it is no coupling, or one that is for choosing only");
    if (application.renormalize_after_drop)
      throw_invalid("experts that choose drop nothing, after which weights could be renormalised");
  }

  index_t inputs() const noexcept { return gate_.inputs(); }
  index_t experts() const noexcept { return gate_.experts(); }

  /// Tokens that expert e takes from a group with this many tokens (of its modality).
  index_t capacity(index_t tokens, bool training, index_t e = 0) const {
    return (std::min)(tokens, options_.capacity.of({tokens, 1, experts_beside(e), training, tokens}, e));
  }

  void route(tokens_in<Scalar> x, const routing_context<Scalar>& context, plan& p, tape& t) const {
    check_tokens(x, inputs(), context);
    if (context.top_k != 0)
      throw_invalid("expert_choice_router has no k, its capacity says how much; the call asks for k = ", context.top_k);
    const index_t tokens = x.rows();
    options_.modalities.validate_call(context, tokens);
    detail::score_screened(gate_, noise_, x, context, t);
    scores().score(t.seen.noisy(), context, t.screen, t);
    p.reset(tokens, experts(), most_taken(context, tokens));
    if (application_.scales_inputs()) p.use_input_scale();
    t.rank.assign(tokens, 0);
    t.queues.prepare(tokens, experts(), options_.cap);
    if constexpr (!compares_scores)
      detail::make_room(compared_, choice_call<Scalar>{context, tokens, experts(), 1}, t.compared);
    for (index_t g = 0; g < context.group_count(); ++g)
      for (index_t m = 0; m < options_.modalities.modalities(); ++m) serve(context, context.group(g, tokens), m, p, t);
    for (index_t token = 0; token < tokens; ++token)
      if (t.screen.is_invalid(token)) p.mark_invalid(token);
    p.finish();
    // What losses may use as k: the mean number of experts a token got, rounded.
    t.seen.top_k = tokens == 0 ? 1 : (std::max<index_t>)(1, (2 * p.size() + tokens) / (2 * tokens));
  }

  void backward(tokens_in<Scalar> x, const routing_context<Scalar>& context, const plan& p,
                const typename plan::gradient& dplan, tape& t, tokens_out<Scalar> dx) {
    t.dnoisy = t.dseen.noisy_or_clean();
    scores().backward(context, p, dplan, application_, t, t.dnoisy);
    if constexpr (has_coupled_gradient)
      if (options_.scores == score::coupled) couple_back(context, p, dplan, t);
    detail::pull_back_screened(gate_, noise_, x, context, t, dx);
  }

  const options& settings() const noexcept { return options_; }
  GateType& gate() noexcept { return gate_; }
  const GateType& gate() const noexcept { return gate_; }
  Noise& noise() noexcept { return noise_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<GateType>) visit("gate", self.gate_);
    if constexpr (HasParameters<Noise>) visit("noise", self.noise_);
  }

private:
  choice_scores<Scalar> scores() const { return {options_.scores, options_.modalities, experts()}; }

  /// Experts among which those like e are, e included.
  index_t experts_beside(index_t e) const {
    return options_.modalities.of(options_.modalities.served_by(e), experts()).count;
  }

  /// What all experts take together if no token is padding.
  index_t most_taken(const routing_context<Scalar>& context, index_t tokens) const {
    index_t most = 0;
    for (index_t g = 0; g < context.group_count(); ++g) {
      const index_t size = context.group(g, tokens).size();
      for (index_t e = 0; e < experts(); ++e)
        most += (std::min)(size, options_.capacity.at({size, 1, experts_beside(e), context.training, size}, e));
    }
    return most;
  }

  /// The experts of a modality choose from its tokens of one group.
  void serve(const routing_context<Scalar>& context, token_range group, index_t modality, plan& p, tape& t) const {
    token_queues<Scalar>& queues = t.queues;
    index_t real = 0;
    queues.valid.clear();
    for (index_t token = group.begin; token < group.end; ++token) {
      if (context.is_padding(token) || options_.modalities.modality(context, token) != modality) continue;
      ++real;
      if (t.screen.is_routed(token)) queues.valid.push_back(token);
    }
    if (real == 0) return;
    const modality_experts::part own = options_.modalities.of(modality, experts());
    for (index_t e = own.first; e < own.first + own.count; ++e)
      queues.taken[e] = (std::min)(capacity(real, context.training, e), queues.valid.size());
    if constexpr (!compares_scores) {
      if (!queues.valid.empty()) compared_.couple(batch_of(context, group, t), t.compared);
      if (options_.scores == score::coupled)
        for (const index_t token : queues.valid)
          std::copy_n(t.compared.coupling.row(token), experts(), t.scores.row(token));
    }
    queues.choose(compared_by(t), group, own, options_.cap, context.executor);
    for (index_t e = own.first; e < own.first + own.count; ++e) {
      scores().weigh(e, queues, t);
      for (index_t c = 0; c < queues.taken[e]; ++c) {
        const index_t token = queues.token(e, c);
        const Scalar weight = scores().weight(token, e, t);
        p.add(token, e, application_.on_output(weight), t.rank[token]++, application_.on_input(weight));
      }
    }
  }

  bool can_weigh() const noexcept {
    if constexpr (has_coupled_gradient)
      return compared_.can_weigh();
    else
      return false;
  }

  /// The valid tokens of a group, as a coupling sees them.
  choice_batch<Scalar> batch_of(const routing_context<Scalar>& context, token_range group, const tape& t) const {
    return {
        {context, t.scores.rows(), experts(), 1}, group, t.queues.valid.span(), t.seen.noisy(), t.seen.clean, t.scores};
  }

  /// The gradient of weights that are entries of the coupling, group by group.
  void couple_back(const routing_context<Scalar>& context, const plan& p, const typename plan::gradient& dplan,
                   tape& t) const {
    t.dcoupling.set_zero(p.tokens(), experts());
    for (index_t i = 0; i < p.size(); ++i) t.dcoupling(p.token(i), p.expert(i)) = application_.gradient(dplan, i);
    for (index_t g = 0; g < context.group_count(); ++g) {
      const token_range group = context.group(g, p.tokens());
      t.queues.valid.clear();
      for (index_t token = group.begin; token < group.end; ++token)
        if (t.screen.is_routed(token)) t.queues.valid.push_back(token);
      if (!t.queues.valid.empty()) compared_.backward(batch_of(context, group, t), t.dcoupling, t.compared, t.dnoisy);
    }
  }

  static const matrix_buffer<Scalar>& compared_by(const tape& t) {
    if constexpr (compares_scores)
      return t.scores;
    else
      return t.compared.coupling;
  }

  GateType gate_;
  Noise noise_;
  options options_;
  weight_application<Scalar> application_;
  SLUICE_NO_UNIQUE_ADDRESS Compared compared_;
};

static_assert(DifferentiableRouter<expert_choice_router<float>>);
static_assert(DifferentiableRouter<expert_choice_router<double, linear_gate<double>, gaussian_noise<double>>>);

}  // namespace sluice::inline SLUICE_ISA
