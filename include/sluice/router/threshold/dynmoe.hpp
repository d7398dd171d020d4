/// Top-any router (DynMoE): a token goes to every expert whose cosine score passes that expert's own threshold, and
/// experts come and go while training.
///
///   c = logits of a cosine gate: tau <x_t/|x_t|, W_e/|W_e|>    gate.sim_matrix W [E,D], one row an expert
///   s[t,e] = live[e] sigmoid(c[t,e])     h[e] = sigmoid(tau G[e])        threshold G [E]   live [E] 0 or 1
///   active[t,e] = s > h, strictly;   k_t = number of active experts;   weight of each 1 / k_t
///
/// E is room for experts; those that are not live never pass. In training a token without an active expert is routed
/// nowhere (its output is 0); at inference it goes to the live expert of the highest score, with weight 1 as in the
/// paper's language models, or with that score as in its vision models (unserved_weight). Equal scores: the lower
/// index. A token with NaN in it or its logits is invalid and routed nowhere. Padding is not routed and may hold
/// anything. T = 0 gives an empty plan.
///
/// Straight-through gradient: the step hands its gradient on to relu(s - h), so active pairs have one and no others do,
/// inference's single choices included; 1/k_t is a constant. With g the gradient of the weights and that of losses:
///   dd[t,e] = (g[t,e] / k_t + dactive[t,e]) 1[s > h];  ds = dd;  dh[e] = - sum over t of dd[t,e];  the rest is exact
///
/// Training calls record into the tape what adapt() goes by (router/threshold/expert_turnover.hpp); the new expert's
/// row of W becomes unserved / |unserved|, its threshold 0, and the network in its place stays as it was. after_step()
/// counts steps and adapts on schedule; what it did stays in tape.change. Initial values: W normal with deviation
/// 1/sqrt(D), G zero. Guo et al. 2024, arXiv:2405.14297.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/core/statistics.hpp>
#include <sluice/core/token_screen.hpp>
#include <sluice/gate/cosine.hpp>
#include <sluice/kernel/logistic.hpp>
#include <sluice/router/threshold/expert_turnover.hpp>
#include <sluice/router/threshold/top_any_signals.hpp>

#include <algorithm>
#include <cmath>

namespace sluice::inline SLUICE_ISA {

/// The weight of the one expert that inference gives to a token without active experts.
enum class unserved_weight { one, score };

template <FloatOrDouble Scalar>
class top_any_router {
public:
  using scalar = Scalar;
  using plan = sparse_plan<Scalar>;
  static constexpr bool exact_gradient = false;

  struct options {
    index_t live = 0;        ///< experts to begin with, from the first on; 0 means all
    double temperature = 1;  ///< tau starts at 1 / temperature and is at most 100
    bool learn_temperature = false;
    turnover_schedule schedule{};
    unserved_weight unserved = unserved_weight::one;
  };

  struct tape {
    top_any_signals<Scalar> seen;
    top_any_gradients<Scalar> dseen;
    turnover_record<Scalar> record;
    expert_change change;  ///< of the last after_step()
    token_screen<Scalar> screen;  ///< who is routed, and what the gate saw
    typename cosine_gate<Scalar>::tape gate;
    matrix_buffer<Scalar> dlogits;
    buffer<Scalar> dthresholds;
  };

  /// Room for E experts. Throws std::invalid_argument if a size is below 1, live is not within 0..E, the temperature is
  /// not positive, or the schedule does not fit.
  top_any_router(index_t inputs, index_t experts, options o = {})
      : options_(o),
        gate_(inputs, experts,
              {.scale = 1 / o.temperature, .trainable_scale = o.learn_temperature, .largest_scale = largest_scale}) {
    if (o.live < 0 || o.live > experts || !is_above(o.temperature, 0))
      throw_invalid("top_any_router needs 0 <= live <= E and a temperature > 0, not live = ", o.live, ", E = ", experts,
                    ", temperature ", o.temperature);
    o.schedule.validate();
    gate_.sim_matrix() = {
        {experts, inputs}, parameter_role::weight, initial_values::normal(1 / std::sqrt(static_cast<double>(inputs)))};
    threshold_ = {{experts}, parameter_role::vector};
    live_ = {{experts}, parameter_role::state};
    std::fill_n(live_.data(), o.live == 0 ? experts : o.live, Scalar(1));
    step_ = {{1}, parameter_role::state};
  }

  index_t inputs() const noexcept { return gate_.inputs(); }
  index_t experts() const noexcept { return gate_.experts(); }
  bool is_live(index_t e) const noexcept { return live_.data()[e] != Scalar(0); }
  index_t live_experts() const noexcept {
    index_t count = 0;
    for (index_t e = 0; e < experts(); ++e) count += is_live(e);
    return count;
  }

  void route(tokens_in<Scalar> x, const routing_context<Scalar>& context, plan& p, tape& t) const {
    check_tokens(x, inputs(), context);
    auto& s = t.seen;
    s.logits.resize(x.rows(), experts());
    t.screen.score(
        x, context, [&](tokens_in<Scalar> seen) { gate_.forward(seen, context, s.logits.map(), t.gate); },
        [&](index_t token) { return any_nan(s.logits.row(token), experts()); });
    t.screen.spoil_invalid(s.logits);
    score(context, t);
    const bool recording = context.training && options_.schedule.records(step());
    if (context.training) {
      t.record.prepare(experts(), inputs());
      t.change.removed.reserve(experts());
    }
    p.reset(x.rows(), experts());
    for (index_t token = 0; token < x.rows(); ++token) {
      Scalar* active = s.active.row(token);
      if (t.screen.is_invalid(token)) p.mark_invalid(token);
      if (!t.screen.is_routed(token)) continue;
      index_t count = 0;
      for (index_t e = 0; e < experts(); ++e) count += active[e] != Scalar(0);
      if (recording) note(x.data() + token * x.outerStride(), active, count, t.record);
      if (count == 0 && !context.training) {
        active[best_live(s.scores.row(token))] = 1;
        count = 1;
      }
      s.count[token] = count;
    }
    p.assign_positive([&](index_t token) { return t.screen.is_routed(token) ? s.active.row(token) : nullptr; },
                      [&](index_t token, index_t e) {
                        return is_unserved(s, token, e) && options_.unserved == unserved_weight::score
                                   ? s.scores(token, e)
                                   : 1 / static_cast<Scalar>(s.count[token]);
                      });
  }

  void backward(tokens_in<Scalar> x, const routing_context<Scalar>& context, const plan& p,
                const typename plan::gradient& dplan, tape& t, tokens_out<Scalar> dx) {
    const auto& s = t.seen;
    t.dlogits = t.dseen.active;
    t.dthresholds.assign(experts(), Scalar(0));
    for (index_t token = 0; token < x.rows(); ++token) {
      Scalar* row = t.dlogits.row(token);
      for (const index_t i : p.of_token(token))
        row[p.expert(i)] += dplan.weight[i] / static_cast<Scalar>(s.count[token]);
      for (index_t e = 0; e < experts(); ++e) {
        const Scalar score = s.scores(token, e);
        const bool passes = s.active(token, e) != Scalar(0) && !is_unserved(s, token, e);
        if (passes) t.dthresholds[e] -= row[e];
        row[e] = passes ? row[e] * score * (1 - score) : Scalar(0);
      }
    }
    const Scalar tau = gate_.scale();
    for (index_t e = 0; e < experts(); ++e) {
      const Scalar scaled = t.dthresholds[e] * s.thresholds[e] * (1 - s.thresholds[e]) * tau;
      threshold_.gradient()[static_cast<std::size_t>(e)] += scaled;
      if (!(gate_.temperature().data()[0] > std::log(Scalar(largest_scale))))
        gate_.temperature().gradient()[0] += scaled * threshold_.data()[e];
    }
    gate_.backward(t.screen.of(x), context, t.dlogits.map(), t.gate, dx);
    add_representation_gradients(t);
  }

  /// Counts a training step; at the end of a recording window changes experts by what this tape recorded.
  void after_step(const routing_statistics&, tape& t) {
    const turnover_schedule& schedule = options_.schedule;
    t.change.clear();
    if (schedule.period == 0) return;
    step_.data()[0] = static_cast<Scalar>((step() + 1) % schedule.period);
    if (schedule.ends(step())) adapt(t.record, t.change);
    if (schedule.ends(step()) || schedule.starts(step())) t.record.clear();
  }

  /// Changes experts by what a record says; a record without tokens changes nothing. Throws std::invalid_argument if it
  /// is for other sizes. For use without a schedule, and with records of several tapes; the record stays as it is.
  expert_change adapt(const turnover_record<Scalar>& record) {
    expert_change change;
    adapt(record, change);
    return change;
  }
  /// The same, written over `change`, which keeps its memory.
  void adapt(const turnover_record<Scalar>& record, expert_change& change) {
    change.clear();
    if (record.tokens == 0) return;
    if (record.activations.size() != experts() || record.unserved.size() != inputs())
      throw_invalid("the record is for E = ", record.activations.size(), ", D = ", record.unserved.size(),
                    ", the router has E = ", experts(), ", D = ", inputs());
    turn_over(record, live_.value(), change);
    if (change.added == no_expert) return;
    threshold_.data()[change.added] = 0;
    const Scalar length = record.length();
    for (index_t d = 0; d < inputs(); ++d)
      gate_.sim_matrix().data()[change.added * inputs() + d] = record.unserved[d] / length;
  }

  cosine_gate<Scalar>& gate() noexcept { return gate_; }
  parameter<Scalar>& threshold() noexcept { return threshold_; }
  parameter<Scalar>& live() noexcept { return live_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("gate", self.gate_);
    visit("threshold", self.threshold_);
    visit("live", self.live_);
    visit("step", self.step_);
  }

private:
  static constexpr double largest_scale = 100;

  index_t step() const noexcept { return static_cast<index_t>(step_.data()[0]); }

  void score(const routing_context<Scalar>& context, tape& t) const {
    auto& s = t.seen;
    s.directions = t.gate.unit_vectors;
    s.lengths = t.gate.vector_norms;
    s.thresholds.resize(experts());
    s.live.resize(experts());
    for (index_t e = 0; e < experts(); ++e) {
      s.thresholds[e] = kernel::logistic(gate_.scale() * threshold_.data()[e]);
      s.live[e] = live_.data()[e];
    }
    const index_t tokens = s.logits.rows();
    s.scores.resize(tokens, experts());
    s.active.resize(tokens, experts());
    s.count.assign(tokens, 0);
    context.executor.parallel_each(tokens, 16 * experts(), [&](index_t token) {
      Scalar* scores = s.scores.row(token);
      Scalar* active = s.active.row(token);
      kernel::logistic(s.logits.row(token), scores, experts());
      for (index_t e = 0; e < experts(); ++e) {
        scores[e] = is_live(e) ? scores[e] : Scalar(0);
        active[e] = scores[e] > s.thresholds[e] ? Scalar(1) : Scalar(0);
      }
    });
    t.screen.clear_hidden(s.scores);
    t.screen.clear_hidden(s.active);
  }

  /// Whether a token has this expert only because none was active for it.
  static bool is_unserved(const top_any_signals<Scalar>& s, index_t token, index_t e) {
    return !(s.scores(token, e) > s.thresholds[e]);
  }

  /// Dead experts are passed over: their score of 0 is not below a live score that underflowed.
  index_t best_live(const Scalar* scores) const {
    index_t best = no_expert;
    for (index_t e = 0; e < experts(); ++e)
      if (is_live(e) && (best == no_expert || order_key(scores[e]) > order_key(scores[best]))) best = e;
    return best;
  }

  void note(const Scalar* x, const Scalar* active, index_t count, turnover_record<Scalar>& record) const {
    ++record.tokens;
    if (count == 0) kernel::add_scaled(Scalar(1), x, record.unserved.data(), inputs());
    for (index_t e = 0; e < experts(); ++e) record.activations[e] += active[e] != Scalar(0);
  }

  /// What losses ask of the rows of W themselves.
  void add_representation_gradients(tape& t) {
    const auto& s = t.seen;
    parameter<Scalar>& w = gate_.sim_matrix();
    for (index_t e = 0; e < experts(); ++e) {
      Scalar* dw = w.gradient().data() + e * inputs();
      detail::normalize_backward(s.directions.row(e), t.dseen.directions.row(e), inputs(), s.lengths[e],
                                 Scalar(1e-12), dw);
      if (s.lengths[e] > 0)
        kernel::add_scaled(t.dseen.lengths[e] / s.lengths[e], w.data() + e * inputs(), dw, inputs());
    }
  }

  options options_;
  cosine_gate<Scalar> gate_;
  parameter<Scalar> threshold_, live_, step_;
};

static_assert(DifferentiableRouter<top_any_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
