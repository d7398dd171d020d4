#include <sluice/router/threshold/dynmoe.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/loss/dynmoe.hpp>
#include <sluice/train/gradient_check.hpp>
#include <sluice/train/initialize.hpp>
#include <sluice/train/sgd.hpp>

#include "router/router_table.hpp"
#include "support.hpp"

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

using namespace sluice;

namespace {

const test::table_router top_any_in_table("top_any_router", [] {
  return test::made(top_any_router<double>{6, 4});
});

template <typename Scalar>
void set(parameter<Scalar>& p, std::initializer_list<double> values) {
  REQUIRE(p.size() == static_cast<index_t>(values.size()));
  std::transform(values.begin(), values.end(), p.data(), [](double v) { return static_cast<Scalar>(v); });
}

routing_context<double> mode(bool training) {
  routing_context<double> context;
  context.training = training;
  return context;
}

std::vector<index_t> active_experts(const sparse_plan<double>& plan, index_t token) {
  std::vector<index_t> ids;
  for (const index_t i : plan.of_token(token)) ids.push_back(plan.expert(i));
  return ids;
}

/// The router written down again, token by token.
matrix<double> dynmoe_output(top_any_router<double>& router, const matrix<double>& x, bool training) {
  const index_t E = router.experts();
  const auto w = router.gate().sim_matrix().map();
  const double tau = std::exp(std::min(router.gate().temperature().data()[0], std::log(100.0)));
  matrix<double> weights = matrix<double>::Zero(x.rows(), E);
  for (index_t t = 0; t < x.rows(); ++t) {
    index_t best = -1;
    double best_score = -1;
    double count = 0;
    for (index_t e = 0; e < E; ++e) {
      if (router.live().data()[e] == 0) continue;
      const double s = 1 / (1 + std::exp(-tau * x.row(t).normalized().dot(w.row(e).normalized())));
      const double h = 1 / (1 + std::exp(-tau * router.threshold().data()[e]));
      if (s > h) weights(t, e) = ++count > 0;
      if (s > best_score) best = e, best_score = s;
    }
    if (count > 0) weights.row(t) /= count;
    if (count == 0 && !training) weights(t, best) = 1;
  }
  return weights;
}

/// Directions of a plane: tokens and representations are told by their angle in degrees.
void point(double* row, double degrees, double length = 1) {
  row[0] = length * std::cos(degrees * std::numbers::pi / 180);
  row[1] = length * std::sin(degrees * std::numbers::pi / 180);
}

}  // namespace

TEST_CASE("dynmoe: scores, thresholds and equal weights by hand", "[router][dynmoe]") {
  // x = (3,4), representations (1,0), (0,1), (-1,0), tau = 1: cosines .6, .8, -.6, sigmoids .645656, .689974, .354344.
  top_any_router<double> router(2, 3);
  set(router.gate().sim_matrix(), {1, 0, 0, 1, -1, 0});
  matrix<double> x(1, 2);
  x << 3, 4;
  sparse_plan<double> plan;
  top_any_router<double>::tape tape;
  router.route(x, mode(true), plan, tape);
  CHECK(tape.seen.scores(0, 0) == Approx(0.645656).margin(5e-7));
  CHECK(tape.seen.scores(0, 1) == Approx(0.689974).margin(5e-7));
  CHECK(tape.seen.scores(0, 2) == Approx(0.354344).margin(5e-7));
  CHECK(tape.seen.thresholds[0] == 0.5);
  CHECK(active_experts(plan, 0) == std::vector<index_t>{0, 1});
  CHECK(plan.weight(0) == 0.5);
  set(router.threshold(), {0, 1.5, 0});  // h = .817574
  router.route(x, mode(true), plan, tape);
  CHECK(tape.seen.thresholds[1] == Approx(0.817574).margin(5e-7));
  CHECK(active_experts(plan, 0) == std::vector<index_t>{0});
  CHECK(plan.weight(0) == 1);
  // Equal is not above: a representation at a right angle has score and threshold 1/2.
  x << 0, 4;
  set(router.threshold(), {0, 0, 0});
  router.route(x, mode(true), plan, tape);
  CHECK(active_experts(plan, 0) == std::vector<index_t>{1});
}

TEST_CASE("dynmoe: equals the router written token by token", "[router][dynmoe]") {
  struct shape {
    index_t t, d, e, live;
  };
  const auto s = GENERATE(shape{1, 2, 1, 1}, shape{17, 5, 6, 4}, shape{70, 8, 9, 9}, shape{33, 3, 16, 2});
  const bool training = GENERATE(true, false);
  CAPTURE(s.t, s.d, s.e, s.live, training);
  top_any_router<double> router(s.d, s.e, {.live = s.live, .temperature = 0.4});
  initialize(router, 5);
  CHECK(router.live_experts() == s.live);
  const matrix<double> g = test::random_matrix<double>(1, s.e, 6);
  for (index_t e = 0; e < s.e; ++e) router.threshold().data()[e] = 0.3 + 0.2 * g(0, e);
  const matrix<double> x = test::random_matrix<double>(s.t, s.d, 7);
  sparse_plan<double> plan;
  top_any_router<double>::tape tape;
  router.route(x, mode(training), plan, tape);
  plan.validate();
  const matrix<double> expected = dynmoe_output(router, x, training);
  CHECK(test::same_bits(plan.dense_weights(), expected));  // 1/k in both
  for (index_t t = 0; t < s.t; ++t) {
    CHECK(tape.seen.count[t] == static_cast<index_t>(plan.of_token(t).size()));
    if (!training) CHECK(tape.seen.count[t] >= 1);
  }
  for (index_t e = s.live; e < s.e; ++e) CHECK(plan.load(e) == 0);
}

TEST_CASE("dynmoe: raising a threshold never activates more experts", "[router][dynmoe]") {
  top_any_router<double> router(6, 8, {.temperature = 0.3});
  initialize(router, 9);
  const matrix<double> x = test::random_matrix<double>(50, 6, 10);
  sparse_plan<double> plan;
  top_any_router<double>::tape tape;
  index_t last = 50 * 8 + 1;
  for (int step = -6; step <= 6; ++step) {
    std::fill_n(router.threshold().data(), 8, 0.2 * step);
    router.route(x, mode(true), plan, tape);
    CHECK(plan.size() <= last);
    last = plan.size();
  }
  CHECK(last == 0);  // no cosine is above 1.2
}

TEST_CASE("dynmoe: a token that nobody wants", "[router][dynmoe][ties]") {
  top_any_router<double> router(2, 4);
  point(router.gate().sim_matrix().data(), 0);
  point(router.gate().sim_matrix().data() + 2, 30);
  point(router.gate().sim_matrix().data() + 4, 30, 7);  // the same direction: equal scores
  point(router.gate().sim_matrix().data() + 6, 40);
  set(router.threshold(), {0.9, 0.9, 0.9, 0.9});
  set(router.live(), {1, 1, 1, 0});
  matrix<double> x(1, 2);
  point(x.data(), 80);
  sparse_plan<double> plan;
  top_any_router<double>::tape tape;
  router.route(x, mode(true), plan, tape);
  CHECK(plan.size() == 0);
  CHECK(tape.seen.count[0] == 0);
  router.route(x, mode(false), plan, tape);
  CHECK(active_experts(plan, 0) ==
        std::vector<index_t>{1});  // the best live ones are 1 and 2, expert 3 is nearer but not live
  CHECK(plan.weight(0) == 1);

  top_any_router<double> by_score(2, 4, {.unserved = unserved_weight::score});
  by_score.gate().sim_matrix() = router.gate().sim_matrix();
  set(by_score.threshold(), {0.9, 0, 0.9, 0.9});
  matrix<double> two(2, 2);
  two.row(0) = x.row(0);
  two.row(1) << -1, 0;
  sparse_plan<double> weighed;
  top_any_router<double>::tape own;
  by_score.route(two, mode(false), weighed, own);
  CHECK(weighed.weight(weighed.of_token(0)[0]) == 1);  // expert 1 passes: 1/k
  REQUIRE(weighed.of_token(1).size() == 1);
  CHECK(weighed.weight(weighed.of_token(1)[0]) == own.seen.scores(1, weighed.expert(weighed.of_token(1)[0])));
  CHECK(weighed.weight(weighed.of_token(1)[0]) < 0.7);

  // Its gradient goes nowhere.
  plan.finish();
  router.route(x, mode(false), plan, tape);
  tape.dseen.zero_like(tape.seen);
  sparse_plan<double>::gradient dplan;
  dplan.weight.assign(plan.size(), 1.0);
  matrix<double> dx = matrix<double>::Zero(1, 2);
  router.backward(x, mode(false), plan, dplan, tape, dx);
  CHECK(dx.isZero(0));
  for (const double g : router.gate().sim_matrix().gradient()) CHECK(g == 0);
  for (const double g : router.threshold().gradient()) CHECK(g == 0);
}

#if defined(__SSE__)
TEST_CASE("dynmoe: no dead expert is chosen where scores are flushed to zero", "[router][dynmoe]") {
  // sigmoid(-100) is subnormal in float: programs that flush those see 0, the score of a dead expert.
  top_any_router<float> router(2, 3, {.temperature = 0.01});
  set(router.gate().sim_matrix(), {0, 1, -1, 0, -1, 0});
  set(router.live(), {0, 1, 1});
  matrix<float> x(1, 2);
  x << 1, 0;
  sparse_plan<float> plan;
  top_any_router<float>::tape tape;
  const unsigned mode = _MM_GET_FLUSH_ZERO_MODE();
  _MM_SET_FLUSH_ZERO_MODE(_MM_FLUSH_ZERO_ON);
  router.route(x, {}, plan, tape);
  _MM_SET_FLUSH_ZERO_MODE(mode);
  REQUIRE(plan.size() == 1);
  CHECK(plan.expert(0) == 1);
}
#endif

TEST_CASE("dynmoe: straight-through gradients are those of the step's substitute", "[router][dynmoe][gradient]") {
  // Around a fixed point the estimator takes active = 1[d > 0] for 1 + d - stop(d) where d = s - h > 0, and 0
  // elsewhere.
  const bool training = GENERATE(true, false);
  moe_layer layer{top_any_router<double>{5, 6, {.live = 5, .temperature = 0.5, .learn_temperature = true}},
                  expert_bank<swiglu<double>>{6, 5, 4}};
  initialize(layer, 11);
  const matrix<double> g = test::random_matrix<double>(1, 6, 12);
  for (index_t e = 0; e < 6; ++e) layer.router().threshold().data()[e] = 0.3 + 0.2 * g(0, e);
  matrix<double> x = test::random_matrix<double>(12, 5, 13);
  const matrix<double> dy = test::random_matrix<double>(12, 5, 14);
  matrix<double> y(12, 5), dx(12, 5);
  decltype(layer)::tape tape;
  layer.forward(x, y, tape, mode(training));
  layer.backward(dy, dx, tape);

  const auto& base = tape.router.seen;
  index_t alone = 0;
  for (index_t t = 0; t < 12; ++t) {
    bool passes = false;
    for (index_t e = 0; e < 6; ++e) passes |= base.scores(t, e) > base.thresholds[e];
    alone += !passes;
  }
  REQUIRE(alone >= 1);
  REQUIRE(alone < 12);
  decltype(layer)::workspace workspace;
  matrix<double> out(12, 5);
  const auto objective = [&]() -> std::optional<double> {
    layer.forward(x, out, workspace, mode(training));
    const auto& now = workspace.router.seen;
    if (workspace.plan.size() != tape.plan.size()) return {};
    for (index_t i = 0; i < workspace.plan.size(); ++i) {
      const index_t t = workspace.plan.token(i);
      const index_t e = workspace.plan.expert(i);
      if (t != tape.plan.token(i) || e != tape.plan.expert(i)) return {};
      const double d0 = base.scores(t, e) - base.thresholds[e];
      const double d = now.scores(t, e) - now.thresholds[e];
      if (d0 > 0)
        workspace.plan.weights()[static_cast<std::size_t>(i)] = (1 + d - d0) / static_cast<double>(base.count[t]);
    }
    layer.forward_planned(x, out, workspace, mode(training));
    return (out.array() * dy.array()).sum();
  };
  const auto report = check_gradients(layer, {{"x", test::span_of(x), test::span_of(std::as_const(dx))}}, objective);
  INFO(report.describe());
  CHECK(report.checked > 400);
  CHECK(report.skipped == 0);
  CHECK(report.largest_error < 1e-6);
  CHECK(layer.router().gate().temperature().gradient()[0] != 0);
}

TEST_CASE("dynmoe: the temperature stops at 100 and has no gradient above", "[router][dynmoe]") {
  top_any_router<double> router(3, 2, {.temperature = 0.001, .learn_temperature = true});
  initialize(router, 15);
  CHECK(router.gate().scale() == Approx(100));
  set(router.threshold(), {-0.01, -0.02});
  const matrix<double> x = test::random_matrix<double>(8, 3, 16);
  sparse_plan<double> plan;
  top_any_router<double>::tape tape;
  router.route(x, mode(true), plan, tape);
  REQUIRE(plan.size() > 0);
  tape.dseen.zero_like(tape.seen);
  sparse_plan<double>::gradient dplan;
  dplan.weight.assign(plan.size(), 1.0);
  matrix<double> dx = matrix<double>::Zero(8, 3);
  router.backward(x, mode(true), plan, dplan, tape, dx);
  CHECK(router.gate().temperature().gradient()[0] == 0);
}

TEST_CASE("dynmoe: what a record changes", "[router][dynmoe]") {
  top_any_router<double> router(2, 5, {.live = 3});
  initialize(router, 21);
  set(router.threshold(), {0.1, 0.2, 0.3, 0.4, 0.5});
  turnover_record<double> record;
  const auto fill = [&](index_t tokens, std::vector<index_t> activations, std::vector<double> unserved) {
    record.prepare(5, 2);
    record.tokens = tokens;
    std::copy(activations.begin(), activations.end(), record.activations.begin());
    std::copy(unserved.begin(), unserved.end(), record.unserved.begin());
  };
  const auto live = [&] { return std::vector<double>(router.live().value().begin(), router.live().value().end()); };

  SECTION("an idle expert goes, and its place is given away at once") {
    fill(10, {4, 0, 3, 0, 0}, {3, -4});
    const expert_change change = router.adapt(record);
    CHECK(std::vector<index_t>(change.removed.begin(), change.removed.end()) == std::vector<index_t>{1});
    CHECK(change.added == 1);
    CHECK(live() == std::vector<double>{1, 1, 1, 0, 0});
    CHECK(router.gate().sim_matrix().data()[2] == Approx(0.6));
    CHECK(router.gate().sim_matrix().data()[3] == Approx(-0.8));
    CHECK(router.threshold().data()[1] == 0);
    CHECK(router.threshold().data()[0] == 0.1);
  }
  SECTION("without unserved tokens experts only go") {
    fill(10, {0, 5, 0, 0, 0}, {0, 0});
    const expert_change change = router.adapt(record);
    CHECK(change.removed.size() == 2);
    CHECK(change.added == no_expert);
    CHECK(live() == std::vector<double>{0, 1, 0, 0, 0});
  }
  SECTION("one always stays") {
    fill(10, {0, 0, 0, 0, 0}, {0, 0});
    router.adapt(record);
    CHECK(live() == std::vector<double>{0, 0, 1, 0, 0});
  }
  SECTION("at most one comes, at the lowest free place") {
    fill(10, {1, 1, 1, 0, 0}, {0, 5});
    CHECK(router.adapt(record).added == 3);
    CHECK(live() == std::vector<double>{1, 1, 1, 1, 0});
    fill(10, {1, 1, 1, 1, 0}, {0, 5});
    CHECK(router.adapt(record).added == 4);
    fill(10, {1, 1, 1, 1, 1}, {0, 5});
    CHECK(router.adapt(record).added == no_expert);  // no room
    CHECK(router.live_experts() == 5);
  }
  SECTION("nothing seen, nothing changed") {
    fill(0, {0, 0, 0, 0, 0}, {0, 0});
    CHECK(router.adapt(record).removed.empty());
    CHECK(router.live_experts() == 3);
  }
  SECTION("a sum that is no direction adds nobody") {
    fill(10, {1, 1, 1, 0, 0}, {quiet_nan<double>(), 1});
    CHECK(router.adapt(record).added == no_expert);
    fill(10, {1, 1, 1, 0, 0}, {std::numeric_limits<double>::infinity(), 1});
    CHECK(router.adapt(record).added == no_expert);
  }
  SECTION("records add up, and those of other routers are refused") {
    fill(10, {1, 0, 2, 0, 0}, {1, 2});
    turnover_record<double> sum;
    sum.add(record);
    sum.add(turnover_record<double>{});
    sum.add(record);
    CHECK(sum.tokens == 20);
    CHECK(sum.activations[2] == 4);
    CHECK(sum.unserved[1] == 4);
    turnover_record<double> other;
    other.prepare(4, 2);
    other.tokens = 1;
    CHECK_THROWS_AS(sum.add(other), std::invalid_argument);
    CHECK_THROWS_AS(router.adapt(other), std::invalid_argument);
  }
}

TEST_CASE("dynmoe: training records activations and unserved tokens", "[router][dynmoe]") {
  top_any_router<double> router(2, 3, {.live = 2});
  point(router.gate().sim_matrix().data(), 0);
  point(router.gate().sim_matrix().data() + 2, 90);
  set(router.threshold(), {0.5, 0.5, 0});  // within 60 degrees
  matrix<double> x(5, 2);
  point(x.row(0).data(), 10, 3);   // expert 0
  point(x.row(1).data(), 45, 2);   // both
  point(x.row(2).data(), 180, 2);  // nobody
  point(x.row(3).data(), 270, 3);  // nobody
  point(x.row(4).data(), 200, 9);  // padding
  const std::uint8_t mask[] = {1, 1, 1, 1, 0};
  auto context = mode(true);
  context.token_mask = mask;
  sparse_plan<double> plan;
  top_any_router<double>::tape tape;
  router.route(x, context, plan, tape);
  router.route(x, context, plan, tape);
  CHECK(tape.record.tokens == 8);
  CHECK(tape.record.activations[0] == 4);
  CHECK(tape.record.activations[1] == 2);
  CHECK(tape.record.activations[2] == 0);
  CHECK(tape.record.unserved[0] == Approx(-4));
  CHECK(tape.record.unserved[1] == Approx(-6));
  context.training = false;
  router.route(x, context, plan, tape);
  CHECK(tape.record.tokens == 8);
}

TEST_CASE("dynmoe: experts come and go while a layer trains", "[router][dynmoe]") {
  // Tokens lie at 0 and 180 degrees. Experts 0 (0 degrees) and 1 (90 degrees) are live at first: nobody wants the
  // tokens at 180, and nobody wants expert 1. Steps 0, 1 pass, 2..4 are recorded, after the fifth experts change.
  moe_layer layer{top_any_router<double>{2, 4, {.live = 2, .schedule = {.period = 6, .start = 2, .window = 3}}},
                  expert_bank<ffn<double, gelu>>{4, 2, 6, {.bias = true}}, dynmoe_loss{}};
  initialize(layer, 31);
  point(layer.router().gate().sim_matrix().data(), 0);
  point(layer.router().gate().sim_matrix().data() + 2, 90);
  set(layer.router().threshold(), {0.4, 0.4, 0.4, 0.4});
  matrix<double> x(24, 2);
  for (index_t t = 0; t < 24; ++t)
    point(x.row(t).data(), static_cast<double>((t % 2) * 180 + 2 * (t % 5) - 4), 1 + 0.1 * static_cast<double>(t));
  const matrix<double> wanted = -2 * x;
  decltype(layer)::tape tape;
  matrix<double> y(24, 2), dx(24, 2);
  sgd<double> optimizer{{.learning_rate = 0.02}};
  std::vector<std::vector<double>> live;
  double first_error = 0;
  double error = 0;
  for (int step = 0; step < 60; ++step) {
    layer.forward(x, y, tape);
    error = (y - wanted).squaredNorm();
    if (step == 0) first_error = error;
    const matrix<double> dy = 2 * (y - wanted) / 24;
    zero_gradients(layer);
    layer.backward(dy, dx, tape);
    optimizer.step(layer);
    layer.after_step(tape);
    const auto value = layer.router().live().value();
    live.emplace_back(value.begin(), value.end());
    if (step == 4) {
      // Expert 1 went, and its place was given at once to the tokens that nobody wanted.
      CHECK(tape.router.change.removed.size() == 1);
      CHECK(tape.router.change.removed[0] == 1);
      CHECK(tape.router.change.added == 1);
      CHECK(layer.router().gate().sim_matrix().data()[2] < -0.99);
      CHECK(layer.router().threshold().data()[1] == 0);
      CHECK(tape.router.record.tokens == 0);
    } else if (step < 10) {
      CHECK(tape.router.change.added == no_expert);
      CHECK(tape.router.change.removed.empty());
    }
  }
  CHECK(live[3] == std::vector<double>{1, 1, 0, 0});
  for (index_t t = 0; t < 24; ++t) CHECK(tape.router.seen.count[t] >= 1);
  CHECK(error < 0.1 * first_error);

  // A threshold above every cosine: expert 0 goes, and its place goes to the tokens that it leaves behind.
  layer.router().threshold().data()[0] = 2;
  for (int step = 0; step < 5; ++step) {
    layer.forward(x, y, tape);
    layer.after_step(tape);
  }
  REQUIRE(tape.router.change.removed.size() == 1);
  CHECK(tape.router.change.removed[0] == 0);
  CHECK(tape.router.change.added == 0);
  layer.forward(x, y, tape);
  for (index_t t = 0; t < 24; ++t) CHECK(tape.router.seen.count[t] >= 1);
}

TEST_CASE("dynmoe: the schedule", "[router][dynmoe]") {
  const turnover_schedule schedule{.period = 900, .start = 300, .window = 300};
  CHECK_FALSE(schedule.records(299));
  CHECK(schedule.records(300));
  CHECK(schedule.records(599));
  CHECK_FALSE(schedule.records(600));
  CHECK(schedule.starts(300));
  CHECK(schedule.ends(600));
  CHECK((turnover_schedule{.period = 5, .start = 3, .window = 2}).ends(0));
  using router = top_any_router<double>;
  CHECK_THROWS_AS(router(2, 3, {.schedule = {.period = 5, .start = 3, .window = 3}}), std::invalid_argument);
  CHECK_THROWS_AS(router(2, 3, {.schedule = {.period = 5}}), std::invalid_argument);
  CHECK_THROWS_AS(router(2, 3, {.live = 4}), std::invalid_argument);
  CHECK_THROWS_AS(router(2, 3, {.temperature = 0}), std::invalid_argument);
  CHECK_THROWS_AS(router(0, 3), std::invalid_argument);
}

TEST_CASE("dynmoe: NaN tokens, padding and empty batches", "[router][dynmoe]") {
  const bool training = GENERATE(true, false);
  moe_layer layer{top_any_router<double>{4, 5, {.temperature = 0.4, .learn_temperature = true}},
                  expert_bank<swiglu<double>>{5, 4, 6}, dynmoe_loss{}};
  initialize(layer, 41);
  const matrix<double> x = test::random_matrix<double>(7, 4, 42);
  const matrix<double> dy = test::random_matrix<double>(7, 4, 43);
  const std::uint8_t mask[] = {1, 1, 1, 0, 1, 0, 1};
  decltype(layer)::tape tape;
  const auto run = [&](const matrix<double>& tokens, std::span<const std::uint8_t> token_mask) {
    auto context = mode(training);
    context.token_mask = token_mask;
    matrix<double> y(tokens.rows(), 4);
    layer.forward(tokens, y, tape, context);
    return y;
  };
  const matrix<double> y = run(x, {});
  matrix<double> broken = x;
  broken(2, 1) = quiet_nan<double>();
  const matrix<double> y_broken = run(broken, {});
  for (index_t t = 0; t < 7; ++t) {
    if (t == 2)
      CHECK(is_nan(y_broken(t, 0)));
    else
      CHECK(test::same_bits(y_broken.row(t), y.row(t)));
  }
  CHECK(tape.plan.of_token(2).empty());
  matrix<double> dx(7, 4);
  zero_gradients(layer);
  layer.backward(dy, dx, tape);
  for_each_parameter(layer, [](const std::string& name, parameter<double>& p) {
    INFO(name);
    CHECK_FALSE(any_nan(p.gradient().data(), p.size()));
  });

  broken(3, 0) = quiet_nan<double>();
  broken.row(2) = x.row(2);
  const matrix<double> y_masked = run(broken, mask);
  CHECK(y_masked.row(3).isZero(0));
  CHECK(y_masked.row(5).isZero(0));
  CHECK(test::same_bits(y_masked.row(6), y.row(6)));
  const double loss = tape.loss();
  zero_gradients(layer);
  layer.backward(dy, dx, tape);
  for_each_parameter(layer, [](const std::string& name, parameter<double>& p) {
    INFO(name);
    CHECK_FALSE(any_nan(p.gradient().data(), p.size()));
  });
  CHECK(dx.row(3).isZero(0));
  matrix<double> shorter(5, 4);
  for (index_t t = 0, r = 0; t < 7; ++t)
    if (mask[t]) shorter.row(r++) = x.row(t);
  run(shorter, {});
  CHECK(tape.loss() == loss);

  const matrix<double> nothing = run(matrix<double>(0, 4), {});
  matrix<double> dnothing(0, 4);
  layer.backward(nothing, dnothing, tape);
  CHECK_FALSE(is_nan(tape.loss()));
}

TEST_CASE("dynmoe: equal bits for every executor and thread count", "[router][dynmoe][determinism]") {
  moe_layer layer{top_any_router<float>{12, 9, {.live = 7, .temperature = 0.3, .learn_temperature = true}},
                  expert_bank<swiglu<float>>{9, 12, 8}, dynmoe_loss{}};
  initialize(layer, 51);
  const matrix<float> x = test::random_matrix<float>(130, 12, 52);
  const matrix<float> dy = test::random_matrix<float>(130, 12, 53);
  const auto run = [&](executor_ref executor) {
    zero_gradients(layer);
    decltype(layer)::tape tape;
    matrix<float> y(130, 12), dx(130, 12);
    routing_context<float> context;
    context.training = true;
    context.executor = executor;
    layer.forward(x, y, tape, context);
    layer.backward(dy, dx, tape);
    std::vector<float> numbers(tape.losses.begin(), tape.losses.end());
    numbers.insert(numbers.end(), y.data(), y.data() + y.size());
    numbers.insert(numbers.end(), dx.data(), dx.data() + dx.size());
    numbers.insert(numbers.end(), tape.router.record.unserved.begin(), tape.router.record.unserved.end());
    for_each_parameter(layer, [&](const std::string&, parameter<float>& p) {
      numbers.insert(numbers.end(), p.gradient().begin(), p.gradient().end());
    });
    return numbers;
  };
  const auto expected = run({});
  for (const int threads : {1, 2, 3, 8}) {
    CAPTURE(threads);
    test::shuffled_threads pool(threads);
    const auto numbers = run(pool);
    CHECK(std::memcmp(numbers.data(), expected.data(), numbers.size() * sizeof(float)) == 0);
  }
}
