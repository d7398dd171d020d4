/// Expert-choice router: every expert takes the C tokens of a group that like it most.
///
///   X [T,D]   gate E x D   L = gate(X) [T,E]   L' = noise(L)   p [T,E] scores, weights w:
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
/// Gradients, the choice being constant, with R the experts that took t and g the gradients of its weights:
///   softmax      dl[t,j] = p[t,j] (g[t,j] 1[j in R] - sum over R of p g)
///   sigmoid      dl[t,j] = p[t,j] (1 - p[t,j]) g[t,j] for j in R
///   over_tokens  dl[t,e] = p[t,e] (g[t,e] 1[e took t] - sum over the tokens that e took of p g)
///   over_taken   as much for the tokens taken alone, with w in place of p
///
/// Equal scores: the lower token. Padding is never taken, so an expert that runs out of tokens leaves slots empty. A
/// token with NaN among its logits counts as -infinity, is never taken either, and has output NaN. The choice depends
/// on all tokens of the group, later ones too: not causal. A call may not name a k. options.cap bounds the experts of a
/// token (router/experts_choose/token_cap.hpp). With options.modalities experts and tokens of different modalities do
/// not meet (router/masked/modality_experts.hpp): T, E and softmaxes above are then those of one modality.
/// What experts compare may be something else than p: a coupling of all tokens with all experts
/// (router/assigned/coupling.hpp), of which each takes the C largest entries of its column; weights stay what they are. A
/// coupling goes with neither cap nor modalities.
/// Zhou et al. 2022, "Mixture-of-Experts with Expert Choice Routing", arXiv:2202.09368; noise and capacity
/// rounding as in V-MoE, arXiv:2106.05974; sigmoid scores as in MoMa, arXiv:2407.21770; softmax over tokens as in pMoE,
/// arXiv:2306.04073 (router/experts_choose/patch_level.hpp).
#pragma once

#include <sluice/capacity/capacity_limit.hpp>
#include <sluice/core/concepts.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/signals.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/core/token_screen.hpp>
#include <sluice/gate/linear.hpp>
#include <sluice/kernel/column_softmax.hpp>
#include <sluice/kernel/logistic.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/router/assigned/coupling.hpp>
#include <sluice/router/experts_choose/token_candidate.hpp>
#include <sluice/router/experts_choose/token_cap.hpp>
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
  static_assert(compares_scores || Coupling<Compared, Scalar>,
                "sluice: experts compare no_coupling or a coupling; explain_coupling<yours, scalar>() says what is "
                "missing");

public:
  using scalar = Scalar;
  using plan = sparse_plan<Scalar>;
  static constexpr bool causal = false;
  static constexpr bool exact_gradient = has_exact_gradient<GateType>;

  enum class score { softmax, sigmoid, over_tokens, over_taken, even };
  struct options {
    capacity_limit capacity = capacity_limit::vmoe(2.0, capacity_rounding::up, 0);
    score scores = score::softmax;
    token_cap cap{};                ///< at most so many experts a token
    modality_experts modalities{};  ///< experts take tokens of their modality only
  };

  using candidate = token_candidate<Scalar>;

  struct tape {
    score_signals<Scalar> seen;
    score_gradients<Scalar> dseen;
    token_screen<Scalar> screen;  ///< who is routed, and what the gate saw
    typename GateType::tape gate;
    typename Noise::tape noise;
    matrix_buffer<Scalar> scores;  ///< p [T,E]
    matrix_buffer<Scalar> gates;   ///< [T,E] w of what was taken, for over_taken
    buffer<Scalar> column;         ///< scratch: the logits of what an expert takes
    matrix_buffer<Scalar> dnoisy;
    matrix_buffer<Scalar> dclean;
    matrix_buffer<candidate> queue;  ///< [E,T] scratch: the group's tokens, those that the expert takes in front
    buffer<index_t> valid;           ///< scratch: tokens of the group that may be taken
    buffer<index_t> taken;           ///< [E] scratch: how many tokens of the group each expert takes
    buffer<index_t> rank;            ///< scratch: experts that each token has so far
    token_prices prices;             ///< of the group's tokens, where there is a cap
    buffer<index_t> room;            ///< scratch: experts that each token of the group may still have
    buffer<index_t> next;            ///< [E] scratch: how far down its queue each expert is
    typename Compared::tape compared;
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
    score_tokens(context, t);
    p.reset(tokens, experts(), most_taken(context, tokens));
    if (application_.scales_inputs()) p.use_input_scale();
    t.rank.assign(tokens, 0);
    t.valid.reserve(tokens);
    t.queue.resize(experts(), tokens);
    t.taken.resize(experts());
    if (options_.cap.limits(experts())) {
      t.prices.reserve(tokens, experts());
      t.room.reserve(tokens);
      t.next.reserve(experts());
    }
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
    if (options_.scores == score::softmax || options_.scores == score::sigmoid)
      backward_by_token(context, p, dplan, t);
    else if (options_.scores != score::even)
      backward_by_expert(context, p, dplan, t);
    t.screen.clear_hidden(t.dnoisy);
    t.dclean = t.dnoisy;
    if (t.seen.has_noise) {
      t.dclean.map() += t.dseen.clean.map();
      t.screen.clear_hidden(t.dclean);
      noise_.backward(t.screen.of(x), context, t.seen, t.dnoisy, t.dseen.noise_std, t.noise, dx);
    }
    gate_.backward(t.screen.of(x), context, t.dclean.map(), t.gate, dx);
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
  static constexpr index_t token_block = 32;

  void score_tokens(const routing_context<Scalar>& context, tape& t) const {
    const matrix_buffer<Scalar>& logits = t.seen.noisy();
    if (options_.scores == score::over_taken) {
      t.gates.resize(logits.rows(), experts());
      t.column.reserve(logits.rows());
    }
    if (options_.scores == score::over_taken || options_.scores == score::even) {
      t.scores = logits;
      return;
    }
    t.scores.resize(logits.rows(), experts());
    if (options_.scores == score::over_tokens) {
      for (index_t g = 0; g < context.group_count(); ++g)
        for (index_t m = 0; m < options_.modalities.modalities(); ++m)
          column_softmax(
              logits, context.group(g, logits.rows()),
              [&](index_t token) {
                return t.screen.is_routed(token) && options_.modalities.modality(context, token) == m;
              },
              t.scores, context.executor);
      t.screen.clear_hidden(t.scores);
      return;
    }
    context.executor.parallel_blocks(logits.rows(), token_block, 16 * experts(), [&](index_t begin, index_t end) {
      for (index_t token = begin; token < end; ++token) {
        const Scalar* row = logits.row(token);
        Scalar* own = t.scores.row(token);
        if (options_.scores == score::softmax)
          score_by_softmax(context, token, row, own);
        else
          for (index_t e = 0; e < experts(); ++e) own[e] = kernel::logistic(row[e]);
      }
    });
  }

  /// Over the experts of the token's modality; 0 for the others.
  void score_by_softmax(const routing_context<Scalar>& context, index_t token, const Scalar* row, Scalar* own) const {
    if (!options_.modalities.divides()) return kernel::softmax(row, own, experts());
    std::fill_n(own, experts(), Scalar(0));
    if (context.is_padding(token)) return;  // whose modality may be anything
    const auto [first, count] = options_.modalities.of(options_.modalities.modality(context, token), experts());
    kernel::softmax(row + first, own + first, count);
  }

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
    index_t real = 0;
    t.valid.clear();
    for (index_t token = group.begin; token < group.end; ++token) {
      if (context.is_padding(token) || options_.modalities.modality(context, token) != modality) continue;
      ++real;
      if (t.screen.is_routed(token)) t.valid.push_back(token);
    }
    if (real == 0) return;
    const modality_experts::part own = options_.modalities.of(modality, experts());
    for (index_t e = own.first; e < own.first + own.count; ++e)
      t.taken[e] = (std::min)(capacity(real, context.training, e), t.valid.size());
    if constexpr (!compares_scores)
      if (!t.valid.empty())
        compared_.couple({{context, t.scores.rows(), experts(), 1}, group, t.valid.span(), t.seen.noisy(), t.seen.clean,
                          t.scores},
                         t.compared);
    choose(
        context, own, [](index_t) { return Scalar(0); }, t);
    if (options_.cap.limits(own.count) && is_crowded(group, own, t)) choose_under_cap(context, group, own, t);
    for (index_t e = own.first; e < own.first + own.count; ++e) {
      if (options_.scores == score::over_taken) weigh_taken(e, t);
      for (index_t c = 0; c < t.taken[e]; ++c) {
        const index_t token = t.queue(e, c).token;
        const Scalar weight = weight_of(token, e, t);
        p.add(token, e, application_.on_output(weight), t.rank[token]++, application_.on_input(weight));
      }
    }
  }

  Scalar weight_of(index_t token, index_t expert, const tape& t) const {
    switch (options_.scores) {
      case score::over_taken:
        return t.gates(token, expert);
      case score::even:
        return 1;
      default:
        return t.scores(token, expert);
    }
  }

  /// Weights of what the expert takes, from their logits.
  void weigh_taken(index_t e, tape& t) const {
    t.column.resize(t.taken[e]);
    for (index_t c = 0; c < t.taken[e]; ++c) t.column[c] = t.scores(t.queue(e, c).token, e);
    kernel::softmax(t.column.data(), t.column.data(), t.taken[e]);
    for (index_t c = 0; c < t.taken[e]; ++c) t.gates(t.queue(e, c).token, e) = t.column[c];
  }

  /// Gradients of scores that compete over a token's experts, or not at all.
  void backward_by_token(const routing_context<Scalar>& context, const plan& p, const typename plan::gradient& dplan,
                         tape& t) const {
    context.executor.parallel_blocks(p.tokens(), token_block, 8 * experts(), [&](index_t begin, index_t end) {
      for (index_t token = begin; token < end; ++token) {
        const Scalar* own = t.scores.row(token);
        Scalar* dl = t.dnoisy.row(token);
        Scalar inner = 0;
        for (const index_t i : p.of_token(token)) {
          const index_t e = p.expert(i);
          const Scalar slope = options_.scores == score::softmax ? Scalar(1) : 1 - own[e];
          const Scalar dweight = application_.gradient(dplan, i);
          dl[e] += own[e] * slope * dweight;
          inner += own[e] * dweight;
        }
        if (options_.scores == score::softmax && !p.of_token(token).empty())
          for (index_t e = 0; e < experts(); ++e) dl[e] -= own[e] * inner;
      }
    });
  }

  /// Gradients of weights that compete over the tokens of a group. An expert's own stand group by group in the plan.
  void backward_by_expert(const routing_context<Scalar>& context, const plan& p, const typename plan::gradient& dplan,
                          tape& t) const {
    context.executor.for_work(4 * experts() * p.tokens()).parallel_for(experts(), [&](index_t e) {
      const row_range own = p.by_expert().of(e);
      const index_t modality = options_.modalities.served_by(e);
      index_t i = own.begin;
      for (index_t g = 0; g < context.group_count() && i < own.end; ++g) {
        const token_range group = context.group(g, p.tokens());
        const index_t first = i;
        Scalar inner = 0;
        for (; i < own.end && p.token(i) >= group.begin && p.token(i) < group.end; ++i) {
          const Scalar share = weight_of(p.token(i), e, t) * application_.gradient(dplan, i);
          t.dnoisy(p.token(i), e) += share;
          inner += share;
        }
        if (options_.scores == score::over_taken)
          for (index_t j = first; j < i; ++j) t.dnoisy(p.token(j), e) -= t.gates(p.token(j), e) * inner;
        else if (i > first)
          for (index_t token = group.begin; token < group.end; ++token)
            if (options_.modalities.modality(context, token) == modality)
              t.dnoisy(token, e) -= t.scores(token, e) * inner;
      }
    });
  }

  static const matrix_buffer<Scalar>& compared_by(const tape& t) {
    if constexpr (compares_scores)
      return t.scores;
    else
      return t.compared.coupling;
  }

  /// The best tokens of every expert by score and bonus(i), that of the i-th valid token, come first in its queue.
  template <typename Bonus>
  void choose(const routing_context<Scalar>& context, modality_experts::part own, Bonus bonus, tape& t,
              bool sorts_all = false) const {
    context.executor.for_work(4 * own.count * t.valid.size()).parallel_for(own.count, [&](index_t task) {
      const index_t e = own.first + task;
      candidate* queue = t.queue.row(e);
      for (index_t i = 0; i < t.valid.size(); ++i) {
        const index_t token = t.valid[i];
        queue[i] = {order_key(static_cast<Scalar>(compared_by(t)(token, e) + bonus(i))), token};
      }
      // The order is total, so which candidates end up in front does not depend on the algorithm.
      std::partial_sort(queue, queue + (sorts_all ? t.valid.size() : t.taken[e]), queue + t.valid.size());
    });
  }

  /// Whether the first of the queues give a token more experts than the cap allows.
  bool is_crowded(token_range group, modality_experts::part own, tape& t) const {
    t.room.assign(group.size(), options_.cap.most);
    index_t least = 0;
    for (index_t e = own.first; e < own.first + own.count; ++e)
      for (index_t c = 0; c < t.taken[e]; ++c) least = (std::min)(least, --t.room[t.queue(e, c).token - group.begin]);
    return least < 0;
  }

  /// Experts take turns: each moves the best token that has room left to its place in the front of the queue.
  void choose_under_cap(const routing_context<Scalar>& context, token_range group, modality_experts::part own,
                        tape& t) const {
    t.prices.settle(
        options_.cap, t.valid.size(), own.count,
        [&](index_t i, index_t e) { return static_cast<double>(t.scores(t.valid[i], own.first + e)); },
        [&](index_t e) { return t.taken[own.first + e]; }, context.executor);
    choose(
        context, own, [&](index_t i) { return t.prices[i]; }, t, true);
    t.room.assign(group.size(), options_.cap.most);
    t.next.assign(experts(), 0);
    index_t turns = 0;
    for (index_t e = own.first; e < own.first + own.count; ++e) turns = (std::max)(turns, t.taken[e]);
    for (index_t c = 0; c < turns; ++c)
      for (index_t e = own.first; e < own.first + own.count; ++e) {
        if (c >= t.taken[e]) continue;
        const candidate* queue = t.queue.row(e);
        index_t& i = t.next[e];
        while (i < t.valid.size() && t.room[queue[i].token - group.begin] == 0) ++i;
        if (i == t.valid.size()) {
          t.taken[e] = c;
          continue;
        }
        --t.room[queue[i].token - group.begin];
        t.queue(e, c) = queue[i++];
      }
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
