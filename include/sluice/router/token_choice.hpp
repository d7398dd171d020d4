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
/// denominators, unless weights are computed after the drop. NaN in a token's logits marks it invalid: its output is
/// NaN, it asks for no expert and so takes no slot from other tokens. Padding tokens are not routed and may hold
/// anything. T = 0 gives an empty plan. The choices of the last call, with ids, weights, slots and what was kept, stay
/// in tape.choices.
#pragma once

#include <sluice/capacity/dropless.hpp>
#include <sluice/core/concepts.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/signals.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/core/statistics.hpp>
#include <sluice/router/choice_rule.hpp>
#include <sluice/router/noise.hpp>
#include <sluice/router/padding.hpp>
#include <sluice/router/weight_application.hpp>

#include <algorithm>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <DifferentiableGate GateType, ChoiceRule<typename GateType::scalar> Rule,
          typename Noise = no_noise<typename GateType::scalar>,
          CapacityPolicy<typename GateType::scalar> Capacity = dropless, index_t Experts = dynamic>
class token_choice_router {
public:
  using scalar = typename GateType::scalar;
  using plan = sparse_plan<scalar>;
  static constexpr bool causal = Capacity::causal;

  struct tape {
    score_signals<scalar> seen;
    score_gradients<scalar> dseen;
    typename GateType::tape gate;
    typename Noise::tape noise;
    without_padding<scalar> x;      ///< what the gate saw
    matrix_buffer<scalar> scores;   ///< [T,E] what the rule made of the logits
    matrix_buffer<scalar> scratch;  ///< [blocks of tokens, 2E]
    buffer<std::uint8_t> invalid;   ///< [T] 1 where the logits held NaN
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
        application_(application),
        experts_(gate_.experts()) {
    if (!detail::is_usable(application.input_factor))
      throw_invalid("inputs cannot be multiplied by ", application.input_factor);
    if (gate_.experts() != experts())
      throw_invalid("the router has E = ", experts(), " and its gate E = ", gate_.experts());
    check_top_k(rule_.top_k());
    if constexpr (requires { rule_.validate(experts()); }) rule_.validate(experts());
  }

  index_t inputs() const noexcept { return gate_.inputs(); }
  index_t experts() const noexcept { return experts_.value(); }
  index_t top_k() const noexcept { return rule_.top_k(); }

  void route(tokens_in<scalar> x, const routing_context<scalar>& context, plan& p, tape& t) const {
    const index_t tokens = x.rows();
    const index_t k = context.top_k == 0 ? top_k() : context.top_k;
    check_top_k(k);
    if constexpr (requires { rule_.validate_call(experts(), k, context.training); })
      rule_.validate_call(experts(), k, context.training);
    t.seen.top_k = k;
    t.seen.clean.resize(tokens, experts());
    t.x.hide(x, context);
    const auto seen = t.x.of(x, context);
    gate_.forward(seen, context, t.seen.clean.map(), t.gate);
    noise_.apply(seen, context, t.seen, t.noise);
    choose(context, k, t);
    for (index_t g = 0; g < context.group_count(); ++g)
      capacity_.serve(t.choices, context.group(g, tokens), experts(), context);
    if (application_.renormalize_after_drop) weigh_kept(context, t);
    fill(t, p);
  }

  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, const plan& p,
                const typename plan::gradient& dplan, tape& t, tokens_out<scalar> dx) {
    const matrix_buffer<scalar>& logits = t.seen.noisy();
    t.dnoisy = t.dseen.noisy_or_clean();
    t.dweights.resize(x.rows(), t.choices.top_k);
    context.executor.parallel_blocks(x.rows(), token_block, [&](index_t begin, index_t end) {
      for (index_t token = begin; token < end; ++token) {
        scalar* dw = t.dweights.row(token);
        std::fill_n(dw, t.choices.top_k, scalar(0));
        if (t.invalid[token]) continue;
        for (const index_t i : p.of_token(token)) dw[p.rank(i)] = weight_gradient(dplan, i);
        const index_t count = gather_weighed(t, token, dw);
        if (count > 0)
          rule_.backward(logits.row(token), t.scores.row(token), experts(), t.ids.row(token), count,
                         t.weights.row(token), dw, t.dnoisy.row(token));
      }
    });
    const auto seen = t.x.of(x, context);
    t.dclean = t.dnoisy;
    if (t.seen.has_noise) {
      t.dclean.map() += t.dseen.clean.map();
      noise_.backward(seen, context, t.seen, t.dnoisy, t.dseen.noise_std, t.noise, dx);
    }
    gate_.backward(seen, context, t.dclean.map(), t.gate, dx);
  }

  /// Updates what the rule learns without gradients, such as a selection bias, once per optimiser step.
  void after_step(const routing_statistics& statistics, tape&) {
    if constexpr (requires { rule_.after_step(statistics); }) rule_.after_step(statistics);
  }

  GateType& gate() noexcept { return gate_; }
  const GateType& gate() const noexcept { return gate_; }
  Rule& rule() noexcept { return rule_; }
  const Rule& rule() const noexcept { return rule_; }
  Noise& noise() noexcept { return noise_; }
  const Capacity& capacity() const noexcept { return capacity_; }

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

  void choose(const routing_context<scalar>& context, index_t k, tape& t) const {
    const matrix_buffer<scalar>& logits = t.seen.noisy();
    const index_t tokens = logits.rows();
    t.choices.reset(tokens, k);
    t.scores.resize(tokens, experts());
    t.scratch.resize((tokens + token_block - 1) / token_block, 2 * experts());
    t.invalid.assign(tokens, 0);
    t.ids.resize(tokens, k);
    t.weights.resize(tokens, k);
    context.executor.parallel_blocks(tokens, token_block, [&](index_t begin, index_t end) {
      scalar* scratch = t.scratch.row(begin / token_block);
      for (index_t token = begin; token < end; ++token) {
        scalar* scores = t.scores.row(token);
        if (context.is_padding(token)) {
          std::fill_n(scores, experts(), scalar(0));
          continue;
        }
        const scalar* row = logits.row(token);
        t.invalid[token] = any_nan(row, experts());
        index_t* ids = &t.choices.expert[token * k];
        scalar* weights = &t.choices.weight[token * k];
        rule_.score(row, experts(), scores);
        const index_t count = choose_row(context, token, row, scores, scratch, k, ids);
        std::fill(ids + count, ids + k, no_expert);
        if constexpr (requires { rule_.weigh_drawn(context, token, row, scores, experts(), ids, count, weights); })
          rule_.weigh_drawn(context, token, row, scores, experts(), ids, count, weights);
        else
          rule_.weigh(row, scores, experts(), ids, count, weights);
        t.choices.priority[token] = rule_.priority(scores, experts());
        if (t.invalid[token]) continue;
        for (index_t j = 0; j < count; ++j)
          t.choices.asked[token * k + j] = keeps(context, token, j, tokens, weights[j]);
      }
    });
  }

  index_t choose_row(const routing_context<scalar>& context, index_t token, const scalar* logits, const scalar* scores,
                     scalar* scratch, index_t k, index_t* ids) const {
    if constexpr (requires { rule_.choose_drawn(context, token, logits, scores, scratch, experts(), k, ids); })
      return rule_.choose_drawn(context, token, logits, scores, scratch, experts(), k, ids);
    else
      return rule_.choose(logits, scores, scratch, experts(), k, ids);
  }

  bool keeps(const routing_context<scalar>& context, index_t token, index_t rank, index_t tokens, scalar weight) const {
    if constexpr (requires { rule_.keeps(context, token, rank, tokens, weight); })
      return rule_.keeps(context, token, rank, tokens, weight);
    else
      return true;
  }

  /// Collects the choices that the rule weighed for a token, all or the kept ones, into ids, weights and (packed in
  /// place) dweights; returns their number.
  index_t gather_weighed(tape& t, index_t token, scalar* dweights) const {
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
    return count;
  }

  void weigh_kept(const routing_context<scalar>& context, tape& t) const {
    const index_t k = t.choices.top_k;
    context.executor.parallel_blocks(t.choices.tokens, token_block, [&](index_t begin, index_t end) {
      for (index_t token = begin; token < end; ++token) {
        const index_t count = gather_weighed(t, token, nullptr);
        if (count == 0) continue;
        rule_.weigh(t.seen.noisy().row(token), t.scores.row(token), experts(), t.ids.row(token), count,
                    t.weights.row(token));
        for (index_t j = 0, next = 0; j < k; ++j)
          if (t.choices.kept[token * k + j]) t.choices.weight[token * k + j] = t.weights(token, next++);
      }
    });
  }

  void fill(const tape& t, plan& p) const {
    const choice_table<scalar>& choices = t.choices;
    const bool on_input = application_.use == weight_use::input;
    p.reset(choices.tokens, experts());
    if (application_.use != weight_use::output || application_.input_factor != scalar(1)) p.use_input_scale();
    index_t token = 0;
    for (const index_t pair : choices.order) {
      // Most policies serve the choices of a token one after another: no division for each.
      if (pair < token * choices.top_k || pair >= (token + 1) * choices.top_k) token = pair / choices.top_k;
      const index_t rank = pair - token * choices.top_k;
      const scalar weight = choices.weight[pair];
      if (choices.kept[pair])
        p.add(token, choices.expert[pair], on_input ? scalar(1) : weight, rank,
              application_.input_factor * (on_input ? weight : scalar(1)));
      else
        p.add_dropped({token, choices.expert[pair], rank, choices.slot[pair], weight});
    }
    for (index_t i = 0; i < choices.tokens; ++i)
      if (t.invalid[i]) p.mark_invalid(i);
    p.finish();
  }

  scalar weight_gradient(const typename plan::gradient& dplan, index_t i) const {
    switch (application_.use) {
      case weight_use::output:
        return dplan.weight[i];
      case weight_use::input:
        return application_.input_factor * dplan.input_scale[i];
      case weight_use::straight_through:
        return dplan.weight[i] + application_.input_factor * dplan.input_scale[i];
    }
    return 0;
  }

  GateType gate_;
  Rule rule_;
  Noise noise_;
  Capacity capacity_;
  weight_application<scalar> application_;
  SLUICE_NO_UNIQUE_ADDRESS extent<Experts> experts_;
};

}  // namespace sluice::inline SLUICE_ISA
