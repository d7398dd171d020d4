// A small honest router, written as a user would, that can be told to break one promise at a time.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/signals.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/core/statistics.hpp>
#include <sluice/core/token_screen.hpp>

#include <cmath>
#include <mutex>
#include <thread>
#include <utility>

namespace sluice::test {

/// What the router does wrong.
enum class fault {
  none,
  refuses_zero_tokens,
  forgets_a_token,
  sends_out_of_range,
  sends_twice,
  breaks_ties_by_place,
  weighs_by_place,
  skips_nan,
  spreads_nan,
  lists_kept_as_dropped,
  drops_into_free_slot,
  remembers_calls,
  orders_by_arrival,
  knows_its_thread,
  draws_in_inference,
  learns_in_forward,
  routes_padding,
  reads_padding,
  wrong_gradient,
  forgets_signals,
  forgets_dx,
  overwrites_gradients,
  lets_nan_into_gradients,
  spends_tape,
  steps_to_nan,
};

/// Each token goes to its best expert with weight sigmoid(score):  scores = x W^T,  W [E,D].
class plain_router {
public:
  using scalar = double;
  using plan = sparse_plan<double>;
  struct tape {
    score_signals<double> seen;
    score_gradients<double> dseen;
    token_screen<double> screen;
  };

  plain_router(index_t inputs, index_t experts, fault wrong = fault::none)
      : wrong_(wrong),
        weight_({experts, inputs}, parameter_role::weight,
                initial_values::normal(1 / std::sqrt(static_cast<double>(inputs)))),
        state_({1}, parameter_role::state) {}

  index_t inputs() const { return weight_.cols(); }
  index_t experts() const { return weight_.rows(); }

  void route(tokens_in<double> x, const routing_context<double>& context, plan& p, tape& t) const {
    const index_t tokens = x.rows();
    if (has(fault::refuses_zero_tokens) && tokens == 0) throw_invalid("no tokens");
    matrix_buffer<double>& scores = t.seen.clean;
    scores.resize(tokens, experts());
    t.screen.score(
        x, context, [&](tokens_in<double> seen) { scores.map() = seen * weight_.map().transpose(); },
        [&](index_t token) { return any_nan(scores.row(token), experts()); });
    p.reset(has(fault::forgets_a_token) && tokens > 0 ? tokens - 1 : tokens, experts());
    const bool away = std::this_thread::get_id() != home_;
    const double memory = has(fault::remembers_calls)            ? 1e-3 * calls_++
                          : has(fault::knows_its_thread) && away ? 1e-3
                                                                 : 0;
    if (has(fault::learns_in_forward)) state_.data()[0] += 1;
    double all = 0;
    for (index_t token = 0; token < tokens; ++token)
      if (!context.is_padding(token) || has(fault::reads_padding)) all += x.row(token).sum();
    std::mutex one_at_a_time;
    const auto route_one = [&](index_t token) {
      const std::lock_guard<std::mutex> lock(one_at_a_time);
      if (context.is_padding(token) && !has(fault::routes_padding)) return;
      const double* row = scores.row(token);
      const bool nan = t.screen.is_invalid(token);
      if (nan && has(fault::skips_nan)) return;
      if (nan) return p.mark_invalid(token);
      const index_t first = has(fault::breaks_ties_by_place) ? token % experts() : 0;
      index_t best = first;
      for (index_t i = 1; i < experts(); ++i)
        if (const index_t e = (first + i) % experts(); order_key(row[e]) > order_key(row[best])) best = e;
      double weight = sigmoid(row[best]) + memory;
      if (has(fault::weighs_by_place)) weight += 1e-3 * static_cast<double>(token);
      if (has(fault::spreads_nan)) weight += 1e-290 * all;
      if (has(fault::reads_padding)) weight += 1e-3 * all;
      if (has(fault::draws_in_inference)) weight += 1e-3 * context.random.uniform(random_site::user_site, token);
      if (has(fault::lists_kept_as_dropped)) p.add_dropped({token, best, 0, 100, weight});
      if (has(fault::drops_into_free_slot)) p.add_dropped({token, (best + 1) % experts(), 1, 0, weight});
      p.add(token, has(fault::sends_out_of_range) ? best + experts() : best, weight);
      if (has(fault::sends_twice)) p.add(token, best, weight, 1);
    };
    const index_t planned = p.tokens();
    if (has(fault::orders_by_arrival))
      context.executor.parallel_for(planned, route_one);
    else
      for (index_t token = 0; token < planned; ++token) route_one(token);
    p.finish();
  }

  void backward(tokens_in<double> x, const routing_context<double>&, const plan& p, const plan::gradient& dplan,
                tape& t, tokens_out<double> dx) {
    matrix<double> dscores = matrix<double>::Zero(x.rows(), experts());
    if (!has(fault::forgets_signals)) dscores = t.dseen.clean.map();
    for (index_t i = 0; i < p.size(); ++i) {
      const double s = sigmoid(t.seen.clean(p.token(i), p.expert(i)));
      dscores(p.token(i), p.expert(i)) += dplan.weight[i] * (has(fault::wrong_gradient) ? s : s * (1 - s));
    }
    if (has(fault::spends_tape)) t.dseen.clean.map() = dscores;  // as if it were scratch
    if (has(fault::overwrites_gradients)) weight_.zero_gradient();
    if (has(fault::lets_nan_into_gradients))
      weight_.gradient_map() += dscores.transpose() * x;
    else
      weight_.gradient_map() += dscores.transpose() * t.screen.of(x);
    if (!has(fault::forgets_dx)) dx += dscores * weight_.map();
  }

  void after_step(const routing_statistics&, tape&) {
    if (has(fault::steps_to_nan)) weight_.data()[0] = quiet_nan<double>();
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("weight", self.weight_);
    visit("state", self.state_);
  }

private:
  bool has(fault f) const { return wrong_ == f; }
  static double sigmoid(double z) { return 1 / (1 + std::exp(-z)); }

  fault wrong_;
  parameter<double> weight_;
  mutable parameter<double> state_;
  mutable int calls_ = 0;
  std::thread::id home_ = std::this_thread::get_id();
};

static_assert(DifferentiableRouter<plain_router>);

}  // namespace sluice::test
