/// The engine of every router in which tokens choose experts: gate, noise, rule, capacity, plan.
///
///   logits L [T,E] = gate(x) ;  L' = noise(L) ;  ids, w = rule(L'[t]) per token ;  capacity keeps or drops ;  plan
///
/// The parts are policies:
///   Gate      scores (gate/)                         Noise     what training adds to the scores (router/noise.hpp)
///   Rule      one row of scores -> experts, weights  Capacity  how many tokens an expert takes (capacity/)
/// A router of your own needs a rule only: router/choice_rule.hpp says what it has.
///
/// Gradients: the choice is a constant. A dropped or thinned choice has no output gradient but stays in the rule's
/// denominators, unless weights are computed after the drop. NaN in a token or in its logits marks it invalid: its
/// output is NaN, no rule sees it, it asks for no expert and so takes no slot from others, and it reaches no gradient.
/// Padding is not routed and may hold anything. T = 0 gives an empty plan. The choices of the last call, with ids,
/// weights, slots and what was kept, stay in tape.choices. Causal if gate, rule and capacity are.
#pragma once

#include <sluice/capacity/dropless.hpp>
#include <sluice/core/concepts.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/signals.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/core/statistics.hpp>
#include <sluice/core/token_screen.hpp>
#include <sluice/router/choice_rule.hpp>
#include <sluice/router/noise.hpp>
#include <sluice/router/rule_calls.hpp>
#include <sluice/router/weight_application.hpp>

#include <algorithm>
#include <span>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename GateType, typename Rule, typename Noise = no_noise<detail::scalar_of<GateType>>,
          typename Capacity = dropless, index_t Experts = dynamic>
class token_choice_router {
  static_assert(explain_differentiable_gate<GateType>());
  static_assert(explain_choice_rule<Rule, detail::scalar_of<GateType>>());
  static_assert(explain_noise<Noise, detail::scalar_of<GateType>>());
  static_assert(explain_capacity<Capacity, detail::scalar_of<GateType>>());

public:
  using scalar = detail::scalar_of<GateType>;
  using plan = sparse_plan<scalar>;
  static constexpr bool causal = is_causal<GateType> && is_causal_rule<Rule, scalar> && Capacity::causal;
  static constexpr bool exact_gradient = has_exact_gradient<GateType> && has_exact_gradient<Rule>;

  struct tape {
    score_signals<scalar> seen;
    score_gradients<scalar> dseen;
    typename GateType::tape gate;
    typename Noise::tape noise;
    detail::rule_tape<Rule> rule;
    token_screen<scalar> screen;    ///< who is routed, and what the gate saw
    matrix_buffer<scalar> scores;   ///< [T,E] what the rule made of the logits
    matrix_buffer<scalar> scratch;  ///< [blocks of tokens, 2E]
    buffer<index_t> routable;       ///< scratch: the tokens of a group that may be routed
    matrix_buffer<scalar> dclean;
    matrix_buffer<scalar> dnoisy;
    matrix_buffer<index_t> ids;     ///< [T,K] scratch: the choices that were weighed
    matrix_buffer<scalar> weights;  ///< [T,K] scratch: their weights
    matrix_buffer<scalar> dweights;
    choice_table<scalar> choices;
  };

  /// Throws std::invalid_argument if the rule's k is not in 1..E or the gate has another number of experts than
  /// Experts.
  token_choice_router(GateType gate, Rule rule, Noise noise = {}, Capacity capacity = {},
                      weight_application<scalar> application = {})
      : gate_(std::move(gate)),
        rule_(std::move(rule)),
        noise_(std::move(noise)),
        capacity_(std::move(capacity)),
        application_(application) {
    if (!detail::is_usable(application.input_factor))
      throw_invalid("inputs cannot be multiplied by ", application.input_factor);
    if (gate_.experts() != experts())
      throw_invalid("the router has E = ", experts(), " and its gate E = ", gate_.experts());
    check_top_k(rule_.top_k());
    if constexpr (requires { rule_.validate(experts()); }) rule_.validate(experts());
  }

  index_t inputs() const noexcept { return gate_.inputs(); }
  /// Those of the gate, which may change between calls (gate/sliced.hpp), unless the type fixes them.
  index_t experts() const noexcept {
    if constexpr (Experts == dynamic)
      return gate_.experts();
    else
      return Experts;
  }
  index_t top_k() const noexcept { return rule_.top_k(); }

  void route(tokens_in<scalar> x, const routing_context<scalar>& context, plan& p, tape& t) const {
    check_tokens(x, inputs(), context);
    const index_t tokens = x.rows();
    const index_t k = context.top_k == 0 ? detail::top_k_of(rule_, context) : context.top_k;
    check_top_k(k);
    const choice_call<scalar> call{context, tokens, experts(), k};
    if constexpr (requires { rule_.validate_call(call); }) rule_.validate_call(call);
    t.seen.top_k = k;
    detail::score_screened(gate_, noise_, x, context, t);
    choose(call, t);
    for (index_t g = 0; g < context.group_count(); ++g)
      capacity_.serve(t.choices, context.group(g, tokens), experts(), context);
    if (application_.renormalize_after_drop) weigh_kept(call, t);
    fill(t, p);
  }

  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, const plan& p,
                const typename plan::gradient& dplan, tape& t, tokens_out<scalar> dx) {
    t.dnoisy = t.dseen.noisy_or_clean();
    t.dweights.resize(x.rows(), t.choices.top_k);
    const choice_call<scalar> call{context, x.rows(), experts(), t.choices.top_k};
    const auto collect = [&](const choice_row<scalar>& row) {
      scalar* dw = t.dweights.row(row.token);
      std::fill_n(dw, row.k, scalar(0));
      for (const index_t i : p.of_token(row.token)) dw[p.rank(i)] = application_.gradient(dplan, i);
      return dw;
    };
    if constexpr (CanAssignBackward<Rule, scalar>) {
      if (detail::assigns(rule_, context)) {
        for_routed(call, t, collect);
        for_each_group(call, t, [&](const choice_batch<scalar>& batch) {
          rule_.assign_backward(batch, t.choices, t.dweights, t.rule, t.dnoisy);
        });
      }
    }
    auto& dlogits = t.seen.has_noise && detail::weighs_clean(rule_) ? t.dseen.clean : t.dnoisy;
    for_routed(call, t, [&](const choice_row<scalar>& row) {
      scalar* const dw = collect(row);
      const auto ids = gather_weighed(t, row.token, dw);
      if (!ids.empty()) rule_.backward(row, {ids, t.weights.row(row.token), dw}, dlogits.row(row.token));
    });
    detail::pull_back_screened(gate_, noise_, x, context, t, dx);
  }

  /// Updates what gate and rule learn without gradients, such as a selection bias, once per optimiser step.
  void after_step(const routing_statistics& statistics, tape& t) {
    if constexpr (requires { gate_.after_step(statistics, t.gate); }) gate_.after_step(statistics, t.gate);
    if constexpr (requires { rule_.after_step(statistics); }) rule_.after_step(statistics);
  }

  GateType& gate() noexcept { return gate_; }
  const GateType& gate() const noexcept { return gate_; }
  Rule& rule() noexcept { return rule_; }
  const Rule& rule() const noexcept { return rule_; }
  Noise& noise() noexcept { return noise_; }
  const Capacity& capacity() const noexcept { return capacity_; }
  const weight_application<scalar>& application() const noexcept { return application_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<GateType>) visit("gate", self.gate_);
    if constexpr (HasParameters<Noise>) visit("noise", self.noise_);
    if constexpr (HasParameters<Rule>) visit("rule", self.rule_);
  }

private:
  static constexpr index_t token_block = 32;

  void check_top_k(index_t k) const {
    if (k < 1 || k > experts()) throw_invalid("top-k routing needs 1 <= k <= E, not k = ", k, " with E = ", experts());
  }

  /// f(row) for every token that is routed, spread over the executor.
  template <typename F>
  void for_routed(const choice_call<scalar>& call, tape& t, F&& f) const {
    const matrix_buffer<scalar>& logits = t.seen.noisy();
    call.context.executor.parallel_blocks(call.tokens, token_block, 16 * experts(), [&](index_t begin, index_t end) {
      scalar* scratch = t.scratch.row(begin / token_block);
      for (index_t token = begin; token < end; ++token)
        if (t.screen.is_routed(token))
          f(choice_row<scalar>{call, token, logits.row(token), t.seen.clean.row(token), t.scores.row(token), scratch});
    });
  }

  /// Fills the table of choices: scores, experts, weights, priorities, and which choices ask to be served.
  void choose(const choice_call<scalar>& call, tape& t) const {
    t.choices.reset(call.tokens, call.k);
    t.choices.queue.reserve((std::max)(call.tokens, 2 * experts()));
    t.scores.resize(call.tokens, experts());
    t.scratch.resize((call.tokens + token_block - 1) / token_block, 2 * experts());
    t.ids.resize(call.tokens, call.k);
    t.weights.resize(call.tokens, call.k);
    t.screen.clear_hidden(t.scores);
    const bool together = detail::assigns(rule_, call.context);
    for_routed(call, t, [&](const choice_row<scalar>& row) {
      rule_.score(row, t.scores.row(row.token));
      if (together) return;
      t.choices.priority[row.token] = detail::priority_of(rule_, row);
      weigh(row, detail::choose(rule_, row, t.choices.ids(row.token)), t.choices);
    });
    if (!together) return;
    detail::make_room(rule_, call, t.rule);
    for_each_group(call, t,
                   [&](const choice_batch<scalar>& batch) { detail::assign(rule_, batch, t.choices, t.rule); });
    for_routed(call, t, [&](const choice_row<scalar>& row) {
      if constexpr (!requires { Rule::assigns_priority; })
        t.choices.priority[row.token] = detail::priority_of(rule_, row);
      const index_t* ids = t.choices.ids(row.token);
      weigh(row, std::find(ids, ids + row.k, no_expert) - ids, t.choices);
    });
  }

  /// f(batch) for every group that has tokens to route.
  template <typename F>
  void for_each_group(const choice_call<scalar>& call, tape& t, F&& f) const {
    t.routable.reserve(call.tokens);
    for (index_t g = 0; g < call.context.group_count(); ++g) {
      const token_range group = call.context.group(g, call.tokens);
      t.routable.clear();
      for (index_t token = group.begin; token < group.end; ++token)
        if (t.screen.is_routed(token)) t.routable.push_back(token);
      if (t.routable.empty()) continue;
      f(choice_batch<scalar>{call, group, t.routable.span(), t.seen.noisy(), t.seen.clean, t.scores});
    }
  }

  /// Weighs the first `count` experts of a token, which are its choice.
  void weigh(const choice_row<scalar>& row, index_t count, choice_table<scalar>& choices) const {
    index_t* ids = choices.ids(row.token);
    std::fill(ids + count, ids + row.k, no_expert);
    const index_t first = row.token * row.k;
    scalar* weights = choices.weights(row.token);
    if (count > 0) rule_.weigh(row, {ids, static_cast<std::size_t>(count)}, weights);
    for (index_t j = 0; j < count; ++j) choices.asked[first + j] = detail::keeps(rule_, row, j, weights[j]);
  }

  /// Collects the choices that the rule weighed for a token, all or the kept ones: their experts, which are returned,
  /// their weights in the tape's, and (packed in place) dweights.
  std::span<const index_t> gather_weighed(tape& t, index_t token, scalar* dweights) const {
    const index_t k = t.choices.top_k;
    index_t count = 0;
    for (index_t j = 0; j < k; ++j) {
      const index_t pair = token * k + j;
      if (t.choices.expert[pair] == no_expert || (application_.renormalize_after_drop && !t.choices.kept[pair]))
        continue;
      t.ids(token, count) = t.choices.expert[pair];
      t.weights(token, count) = t.choices.weight[pair];
      if (dweights) dweights[count] = dweights[j];
      ++count;
    }
    return {t.ids.row(token), static_cast<std::size_t>(count)};
  }

  void weigh_kept(const choice_call<scalar>& call, tape& t) const {
    for_routed(call, t, [&](const choice_row<scalar>& row) {
      const auto ids = gather_weighed(t, row.token, nullptr);
      if (ids.empty()) return;
      const scalar* weights = t.weights.row(row.token);
      rule_.weigh(row, ids, t.weights.row(row.token));
      for (index_t pair = row.token * row.k; pair < (row.token + 1) * row.k; ++pair)
        if (t.choices.kept[pair]) t.choices.weight[pair] = *weights++;
    });
  }

  void fill(const tape& t, plan& p) const {
    const choice_table<scalar>& choices = t.choices;
    p.reset(choices.tokens, experts(), choices.tokens * choices.top_k);
    if constexpr (!std::same_as<Capacity, dropless>) p.reserve_dropped(choices.tokens * choices.top_k);
    if (application_.scales_inputs()) p.use_input_scale();
    index_t token = 0;
    for (const index_t pair : choices.order) {
      // Most policies serve the choices of a token one after another: no division for each.
      if (pair < token * choices.top_k || pair >= (token + 1) * choices.top_k) token = pair / choices.top_k;
      const index_t rank = pair - token * choices.top_k;
      const scalar weight = choices.weight[pair];
      if (choices.kept[pair])
        p.add(token, choices.expert[pair], application_.on_output(weight), rank, application_.on_input(weight));
      else
        p.add_dropped({token, choices.expert[pair], rank, choices.slot[pair], weight});
    }
    for (index_t i = 0; i < choices.tokens; ++i)
      if (t.screen.is_invalid(i)) p.mark_invalid(i);
    p.finish();
  }

  GateType gate_;
  Rule rule_;
  Noise noise_;
  Capacity capacity_;
  weight_application<scalar> application_;
};

}  // namespace sluice::inline SLUICE_ISA
