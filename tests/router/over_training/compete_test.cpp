#include <sluice/router/over_training/compete.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/loss/competition.hpp>
#include <sluice/loss/switch_balance.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/gradient_check.hpp>
#include <sluice/train/initialize.hpp>

#include "router/router_table.hpp"
#include "support.hpp"

using namespace sluice;

namespace {

const test::table_router compete_in_table("compete_router", [] {
  return test::made(compete_router{top_k_router<double>{6, 4, {.top_k = 2}}, {.frequency = 0.5}}, {.k = 2});
});

using router_to_compete = top_k_router<double>;
static_assert(WeighsAfterExperts<compete_router<router_to_compete>>);
static_assert(DifferentiableRouter<compete_router<router_to_compete>>);
static_assert(!WeighsAfterExperts<router_to_compete>);

routing_context<double> training_step(index_t step = 0) {
  routing_context<double> context;
  context.training = true;
  context.step = step;
  context.random = random_source(5, static_cast<std::uint64_t>(step));
  return context;
}

struct competition_case {
  index_t tokens, inputs, experts, k;
};

/// The competition written down again: every expert on every token, sorted responses, plain sums.
template <typename Layer>
matrix<double> competed(const Layer& layer, const matrix<double>& x, response form, index_t k,
                         matrix<double>& target) {
  const index_t E = layer.experts();
  matrix<double> y = matrix<double>::Zero(x.rows(), layer.outputs());
  target = matrix<double>::Zero(x.rows(), E);
  for (index_t t = 0; t < x.rows(); ++t) {
    std::vector<matrix<double>> f;
    std::vector<std::pair<double, index_t>> order;
    double all = 0;
    for (index_t e = 0; e < E; ++e) {
      matrix<double> out(1, layer.outputs());
      matrix<double> saved(1, layer.bank().expert(e).saved_columns());
      layer.bank().expert(e).forward(x.row(t), out, saved);
      double a = 0;
      for (index_t d = 0; d < out.cols(); ++d)
        a += form == response::norm ? out(0, d) * out(0, d) : std::log(1 + std::exp(out(0, d)));
      a = form == response::norm ? std::sqrt(a) : a / static_cast<double>(out.cols());
      f.push_back(out);
      order.emplace_back(-a, e);
      all += std::exp(a);
    }
    std::sort(order.begin(), order.end());
    double sum = 0;
    for (index_t j = 0; j < k; ++j) {
      const double a = -order[static_cast<std::size_t>(j)].first;
      sum += form == response::norm ? std::exp(a) : a;
    }
    for (index_t j = 0; j < E; ++j) {
      const double a = -order[static_cast<std::size_t>(j)].first;
      const index_t e = order[static_cast<std::size_t>(j)].second;
      const double w = j >= k ? 0 : (form == response::norm ? std::exp(a) : a) / sum;
      y.row(t) += w * f[static_cast<std::size_t>(e)].row(0);
      target(t, e) = form == response::norm ? w : std::exp(a) / all;
    }
  }
  return y;
}

template <typename Layer, typename Context>
gradient_report check_with_losses(Layer& layer, const competition_case& c, const Context& context, std::uint64_t seed) {
  initialize(layer, seed);
  matrix<double> x = test::random_matrix<double>(c.tokens, c.inputs, seed + 1);
  const matrix<double> dy = test::random_matrix<double>(c.tokens, layer.outputs(), seed + 2);
  matrix<double> y(c.tokens, layer.outputs());
  matrix<double> dx(c.tokens, c.inputs);
  typename Layer::tape tape;
  layer.forward(x, y, tape, context);
  layer.backward(dy, dx, tape);
  const auto winners = std::vector<index_t>(tape.router.seen.winners.data(),
                                            tape.router.seen.winners.data() + tape.router.seen.winners.size());
  typename Layer::tape other;
  return check_gradients(layer, {{"x", test::span_of(x), test::span_of(std::as_const(dx))}},
                         [&]() -> std::optional<double> {
                           layer.forward(x, y, other, context);
                           if (!std::equal(winners.begin(), winners.end(), other.router.seen.winners.data()))
                             return {};
                           return (y.array() * dy.array()).sum() + other.loss();
                         });
}

}  // namespace

TEST_CASE("compete: the two releases choose differently on the same outputs", "[router][compete]") {
  // Outputs (1,-1), (.5,.5), (2,-3): softplus means .813262, .974077, 1.087758; lengths 1.414214, .707107, 3.605551.
  const double outputs[3][2] = {{1, -1}, {0.5, 0.5}, {2, -3}};
  const auto f = [&](index_t e) { return outputs[e]; };
  competition_results<double> r;
  r.reset(1, 3, 2);
  double weights[3] = {0, 0, 0};
  const auto set = [&](index_t e, double w) { weights[e] = w; };
  SECTION("mean softplus: 2, 1") {
    competition<double>(response::mean_softplus, 2).judge(f, 0, r, set);
    CHECK(r.responses(0, 0) == Approx(0.813262).margin(5e-7));
    CHECK(r.responses(0, 1) == Approx(0.974077).margin(5e-7));
    CHECK(r.responses(0, 2) == Approx(1.087758).margin(5e-7));
    CHECK(r.winners(0, 0) == 2);
    CHECK(r.winners(0, 1) == 1);
    CHECK(weights[2] == Approx(1.087758 / (1.087758 + 0.974077)).margin(1e-6));
    CHECK(weights[0] == 0);
    CHECK(r.target(0, 0) > 0);  // all experts are in the target
    // <(2,-3), (.5,.5)> = -.5
    CHECK(r.similarity(0, 1) == Approx(-0.5 / (std::sqrt(13.0) * std::sqrt(0.5))));
    CHECK(r.similarity(0, 0) == Approx(1));
  }
  SECTION("norm: 2, 0") {
    competition<double>(response::norm, 2).judge(f, 0, r, set);
    CHECK(r.winners(0, 0) == 2);
    CHECK(r.winners(0, 1) == 0);
    CHECK(weights[2] == Approx(1 / (1 + std::exp(std::sqrt(2.0) - std::sqrt(13.0)))));
    CHECK(r.target(0, 1) == 0);
    CHECK(r.target(0, 2) == weights[2]);
  }
}

TEST_CASE("compete: a competition equals every expert on every token", "[router][compete]") {
  const auto form = GENERATE(response::norm, response::mean_softplus);
  const auto c = GENERATE(competition_case{1, 3, 1, 1}, competition_case{1, 5, 4, 2}, competition_case{9, 6, 5, 2},
                          competition_case{40, 6, 7, 7});
  CAPTURE(c.tokens, c.inputs, c.experts, c.k);
  moe_layer layer{compete_router{router_to_compete{c.inputs, c.experts, {.top_k = c.k, .constant_weight = true}},
                                 {.responses = form, .frequency = 1}},
                  expert_bank<swiglu<double>>{c.experts, c.inputs, 7}};
  initialize(layer, 3);
  const matrix<double> x = test::random_matrix<double>(c.tokens, c.inputs, 4);
  matrix<double> y(c.tokens, c.inputs);
  decltype(layer)::tape tape;
  layer.forward(x, y, tape, training_step());

  REQUIRE(tape.router.seen.competing);
  CHECK(tape.is_apart);
  CHECK(tape.plan.size() == c.tokens * c.experts);
  matrix<double> target;
  const matrix<double> expected = competed(layer, x, form, c.k, target);
  const double size = expected.cwiseAbs().maxCoeff();
  CHECK(test::largest_difference(y, expected) < test::bound<double>(c.experts * 7 * c.inputs, size));
  CHECK(test::largest_difference(matrix<double>(tape.router.seen.target.map()), target) <
        test::bound<double>(c.experts * 7 * c.inputs));
  for (index_t t = 0; t < c.tokens; ++t) CHECK(tape.plan.dense_weights().row(t).sum() == Approx(1));
}

TEST_CASE("compete: frequency 0 and inference are the base router, bit for bit", "[router][compete]") {
  const double frequency = GENERATE(0.0, 1.0);
  const bool training = frequency == 0;  // at inference even frequency 1 does not compete
  moe_layer plain{router_to_compete{6, 5, {.top_k = 2}}, expert_bank<swiglu<double>>{5, 6, 7},
                  switch_balance{.coefficient = 0.1}};
  moe_layer competing{compete_router{router_to_compete{6, 5, {.top_k = 2}}, {.frequency = frequency}},
                      expert_bank<swiglu<double>>{5, 6, 7}, switch_balance{.coefficient = 0.1}};
  initialize(plain, 7);
  initialize(competing, 7);  // equal values: the parameters have equal names
  const matrix<double> x = test::random_matrix<double>(33, 6, 8);
  const matrix<double> dy = test::random_matrix<double>(33, 6, 9);
  routing_context<double> context = training_step();
  context.training = training;
  const auto run = [&](auto& layer, matrix<double>& y, matrix<double>& dx) {
    typename std::remove_reference_t<decltype(layer)>::tape tape;
    y.resize(33, 6);
    dx.resize(33, 6);
    layer.forward(x, y, tape, context);
    CHECK(!tape.is_apart);
    layer.backward(dy, dx, tape);
    std::vector<double> numbers{tape.loss()};
    for_each_parameter(layer, [&](const std::string&, parameter<double>& p) {
      numbers.insert(numbers.end(), p.gradient().begin(), p.gradient().end());
    });
    return numbers;
  };
  matrix<double> y, dx, y2, dx2;
  const auto numbers = run(plain, y, dx);
  const auto numbers2 = run(competing, y2, dx2);
  CHECK(test::same_bits(y, y2));
  CHECK(test::same_bits(dx, dx2));
  CHECK(numbers == numbers2);
  CHECK(numbers[0] > 0);
}

TEST_CASE("compete: gradients of a competition equal central differences", "[router][compete][gradient]") {
  const auto form = GENERATE(response::norm, response::mean_softplus);
  const competition_case c{7, 5, 4, 2};
  SECTION("through the weights into the experts") {
    moe_layer layer{compete_router{router_to_compete{5, 4, {.top_k = 2}}, {.responses = form, .frequency = 1}},
                    expert_bank<swiglu<double>>{4, 5, 6}};
    const auto report = check_with_losses(layer, c, training_step(), 21);
    INFO(report.describe());
    CHECK(report.checked > 400);
    CHECK(report.skipped == 0);
    CHECK(report.largest_error < 1e-6);
  }
  SECTION("with every loss, and the target not detached") {
    moe_layer layer{compete_router{router_to_compete{5, 4, {.top_k = 3}}, {.responses = form, .frequency = 1}},
                    expert_bank<ffn<double, silu>>{4, 5, 6, {.outputs = 3, .bias = true}},
                    imitation_loss{.coefficient = 40, .winners = 0.5, .through_target = true},
                    diversity_loss{.coefficient = 3},
                    contest_balance{.coefficient = 5},
                    contest_balance{.coefficient = 3, .all_winners = true}};
    const auto report = check_with_losses(layer, c, training_step(), 31);
    INFO(report.describe());
    CHECK(report.skipped == 0);
    CHECK(report.largest_error < 1e-6);
  }
}

TEST_CASE("compete: the imitation loss moves the router and, detached, not the experts",
          "[router][compete][gradient]") {
  const auto form = GENERATE(response::norm, response::mean_softplus);
  moe_layer layer{compete_router{router_to_compete{5, 4, {.top_k = 2}}, {.responses = form, .frequency = 1}},
                  expert_bank<swiglu<double>>{4, 5, 6}, imitation_loss{.coefficient = 30, .winners = 2}};
  initialize(layer, 41);
  matrix<double> x = test::random_matrix<double>(6, 5, 42);
  const matrix<double> zero = matrix<double>::Zero(6, 5);
  matrix<double> y(6, 5);
  matrix<double> dx(6, 5);
  decltype(layer)::tape tape;
  layer.forward(x, y, tape, training_step());
  layer.backward(zero, dx, tape);
  for_each_parameter(layer.bank(), [](const std::string&, const parameter<double>& p) {
    for (const double g : p.gradient()) CHECK(g == 0);
  });
  // The loss by hand, the target and the winners frozen at what the forward call found.
  const matrix<double> target = tape.router.seen.target.map();
  std::vector<index_t> winners(tape.router.seen.winners.data(), tape.router.seen.winners.data() + 12);
  const auto objective = [&] {
    const matrix<double> logits = x * layer.router().base().gate().weight().map().transpose();
    double all = 0;
    double won = 0;
    for (index_t t = 0; t < 6; ++t) {
      const double sum = logits.row(t).array().exp().sum();
      for (index_t e = 0; e < 4; ++e) {
        const double square = std::pow(std::exp(logits(t, e)) / sum - target(t, e), 2);
        all += square / 24;
        if (winners[static_cast<std::size_t>(2 * t)] == e || winners[static_cast<std::size_t>(2 * t + 1)] == e)
          won += square / 12;
      }
    }
    return 30 * (all + 2 * won);
  };
  CHECK(tape.loss() == Approx(objective()).epsilon(test::bound<double>(24)));
  const auto report =
      check_gradients(layer.router(), {{"x", test::span_of(x), test::span_of(std::as_const(dx))}}, objective);
  INFO(report.describe());
  CHECK(report.checked == 20 + 30);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("compete: the imitation loss is 0 exactly where the router already agrees", "[loss][compete]") {
  // One expert: policy and target are both 1.
  moe_layer layer{compete_router{router_to_compete{3, 1, {.top_k = 1, .constant_weight = true}}, {.frequency = 1}},
                  expert_bank<swiglu<double>>{1, 3, 4}, imitation_loss{}, diversity_loss{}};
  initialize(layer, 2);
  const matrix<double> x = test::random_matrix<double>(5, 3, 3);
  matrix<double> y(5, 3);
  decltype(layer)::tape tape;
  layer.forward(x, y, tape, training_step());
  CHECK(tape.losses[0] == 0);
  CHECK(tape.losses[1] == 0);  // one winner has no pair
}

TEST_CASE("compete: a balance loss on the plan is constant in a competition", "[router][compete]") {
  const auto share = GENERATE(balance_share::first_choice, balance_share::per_token, balance_share::per_slot);
  moe_layer layer{compete_router{router_to_compete{5, 4, {.top_k = 2}}, {.frequency = 1}},
                  expert_bank<swiglu<double>>{4, 5, 6}, switch_balance{.coefficient = 1, .share = share}};
  initialize(layer, 51);
  const matrix<double> x = test::random_matrix<double>(6, 5, 52);
  matrix<double> y(6, 5), dx(6, 5);
  decltype(layer)::tape tape;
  layer.forward(x, y, tape, training_step());
  layer.backward(matrix<double>::Zero(6, 5), dx, tape);
  for (const double g : layer.router().base().gate().weight().gradient()) CHECK(std::abs(g) < test::bound<double>(24));
}

TEST_CASE("compete: when a step is a competition", "[router][compete]") {
  const auto count = [](const competition_options& o, index_t steps) {
    const compete_router router{router_to_compete{3, 4}, o};
    index_t n = 0;
    for (index_t s = 0; s < steps; ++s) n += router.competes(training_step(s));
    return n;
  };
  CHECK(count({.frequency = 1}, 100) == 100);
  CHECK(count({.frequency = 0}, 100) == 0);
  CHECK(count({.frequency = 1, .warm_up = 30}, 100) == 70);
  // 4000 draws with chance 1/4: 1000 expected, standard deviation sqrt(4000 * 3/16) = 27.4; five of them.
  CHECK(std::abs(static_cast<double>(count({.frequency = 0.25}, 4000)) - 1000) < 137);
  CHECK(count({.frequency = 1, .warm_up = 2, .steps = {1, 0, 1}}, 100) == 2);
  const compete_router listed{router_to_compete{3, 4}, {.warm_up = 2, .steps = {1, 0, 1}}};
  CHECK(listed.competes(training_step(2)));
  CHECK_FALSE(listed.competes(training_step(3)));
  CHECK(listed.competes(training_step(4)));

  // A recorded draw decides.
  const compete_router router{router_to_compete{3, 4}, {.frequency = 0.5}};
  const double yes[] = {0.1}, no[] = {0.9};
  auto context = training_step();
  context.random.replay(competition_site, no);
  CHECK_FALSE(router.competes(context));
  context.random.replay(competition_site, yes);
  CHECK(router.competes(context));
  context.training = false;
  CHECK_FALSE(router.competes(context));

  // Layers of one step draw for themselves: two agree in half of 400 steps, within five deviations of 10.
  index_t agreements = 0;
  for (index_t step = 0; step < 400; ++step) {
    const auto both = training_step(step);
    agreements += router.competes(both.for_layer(0)) == router.competes(both.for_layer(1));
  }
  CHECK(std::abs(static_cast<double>(agreements) - 200) < 50);

  CHECK_THROWS_AS((compete_router{router_to_compete{3, 4}, {.frequency = 1.5}}), std::invalid_argument);
  CHECK_THROWS_AS((compete_router{router_to_compete{3, 4}, {.warm_up = -1}}), std::invalid_argument);
}

TEST_CASE("compete: a schedule for several layers keeps every draw and the limit", "[router][compete]") {
  const random_source random(11);
  const index_t layers = 6, steps = 200, most = 2;
  const auto free = schedule_competitions(layers, steps, 0.2, layers, random);
  const auto limited = schedule_competitions(layers, steps, 0.2, most, random);
  REQUIRE(free.size() == 6);
  std::vector<index_t> busy(static_cast<std::size_t>(steps), 0);
  for (std::size_t l = 0; l < free.size(); ++l) {
    CHECK(std::count(free[l].begin(), free[l].end(), 1) == std::count(limited[l].begin(), limited[l].end(), 1));
    for (std::size_t s = 0; s < busy.size(); ++s) busy[s] += limited[l][s];
  }
  CHECK(free != limited);
  CHECK(*std::max_element(busy.begin(), busy.end()) == most);
  for (index_t l = 0; l < layers; ++l)
    for (index_t s = 0; s < steps; ++s)
      CHECK((free[static_cast<std::size_t>(l)][static_cast<std::size_t>(s)] != 0) ==
            (random.uniform(competition_site, l * steps + s) < 0.2));
  CHECK_THROWS_AS(schedule_competitions(1, 1, 2.0, 1, random), std::invalid_argument);
}

TEST_CASE("compete: ties, silent experts and extreme outputs", "[router][compete][ties]") {
  const auto judge = [](response form, std::vector<std::vector<double>> outputs, index_t k,
                        competition_results<double>& r) {
    std::vector<double> weights(outputs.size(), 0);
    r.reset(1, static_cast<index_t>(outputs.size()), k);
    competition<double>(form, static_cast<index_t>(outputs[0].size()))
        .judge([&](index_t e) { return outputs[static_cast<std::size_t>(e)].data(); }, 0, r,
               [&](index_t e, double w) { weights[static_cast<std::size_t>(e)] = w; });
    return weights;
  };
  competition_results<double> r;
  for (const auto form : {response::norm, response::mean_softplus}) {
    CHECK(judge(form, {{1, 2}, {1, 2}, {1, 2}}, 2, r) == std::vector<double>{0.5, 0.5, 0});
    CHECK(r.winners(0, 0) == 0);
    CHECK(r.winners(0, 1) == 1);
  }
  // Outputs of zero: length 0, similarity 0 by the guard.
  CHECK(judge(response::norm, {{0, 0}, {0, 0}}, 2, r) == std::vector<double>{0.5, 0.5});
  CHECK(r.similarity(0, 1) == 0);
  // Softplus of -1000 is 0 in double.
  CHECK(judge(response::mean_softplus, {{-1000, -1000}, {-1000, -1000}}, 2, r) == std::vector<double>{0.5, 0.5});
  // NaN counts as -infinity: it wins only where everyone does.
  const double nan = quiet_nan<double>();
  CHECK(judge(response::norm, {{nan, 0}, {1, 0}, {2, 0}}, 2, r)[0] == 0);
  CHECK(r.winners(0, 1) == 1);
}

TEST_CASE("compete: NaN tokens, padding and empty batches", "[router][compete]") {
  moe_layer layer{compete_router{router_to_compete{5, 4, {.top_k = 2}}, {.frequency = 1}},
                  expert_bank<swiglu<double>>{4, 5, 6}, imitation_loss{}, diversity_loss{}, contest_balance{}};
  initialize(layer, 61);
  const auto run = [&](const matrix<double>& x, const routing_context<double>& context, decltype(layer)::tape& tape) {
    matrix<double> y(x.rows(), 5);
    layer.forward(x, y, tape, context);
    return y;
  };
  decltype(layer)::tape tape;
  const matrix<double> x = test::random_matrix<double>(6, 5, 62);
  const matrix<double> y = run(x, training_step(), tape);

  matrix<double> broken = x;
  broken(2, 3) = quiet_nan<double>();
  const matrix<double> y_broken = run(broken, training_step(), tape);
  for (index_t t = 0; t < 6; ++t) {
    if (t == 2)
      CHECK(is_nan(y_broken(t, 0)));
    else
      CHECK(test::same_bits(y_broken.row(t), y.row(t)));
  }

  const std::uint8_t mask[] = {1, 1, 0, 1, 1, 1};
  auto context = training_step();
  context.token_mask = mask;
  const matrix<double> y_masked = run(broken, context, tape);
  CHECK(tape.plan.size() == 5 * 4);
  CHECK(y_masked.row(2).isZero(0));
  CHECK(test::same_bits(y_masked.row(3), y.row(3)));
  const auto masked_losses = tape.losses;
  matrix<double> shorter(5, 5);
  for (index_t t = 0, r = 0; t < 6; ++t)
    if (t != 2) shorter.row(r++) = x.row(t);
  run(shorter, training_step(), tape);
  CHECK(masked_losses == tape.losses);

  const matrix<double> nothing = run(matrix<double>(0, 5), training_step(), tape);
  CHECK(nothing.rows() == 0);
  CHECK(tape.loss() == 0);
  matrix<double> dx(0, 5);
  layer.backward(nothing, dx, tape);
}

TEST_CASE("compete: a plan made elsewhere keeps its weights", "[router][compete]") {
  moe_layer layer{compete_router{router_to_compete{5, 4, {.top_k = 2}}, {.frequency = 1}},
                  expert_bank<swiglu<double>>{4, 5, 6}};
  initialize(layer, 71);
  const matrix<double> x = test::random_matrix<double>(3, 5, 72);
  matrix<double> y(3, 5);
  decltype(layer)::tape tape;
  layer.forward(x, y, tape, training_step());
  for (double& w : tape.plan.weights()) w = 0.25;
  layer.forward_planned(x, y, tape);  // an inference call: the tape's competition is over
  for (const double w : tape.plan.weights()) CHECK(w == 0.25);
  sparse_plan<double> own;
  own.reset(3, 4);
  for (index_t t = 0; t < 3; ++t) own.add(t, t, 2.0);
  own.finish();
  tape.plan = own;
  layer.forward_planned(x, y, tape, training_step());
  for (const double w : tape.plan.weights()) CHECK(w == 2.0);
}

TEST_CASE("compete: equal bits for every executor and thread count", "[router][compete][determinism]") {
  moe_layer layer{compete_router{top_k_router<float>{12, 7, {.top_k = 3}}, {.frequency = 1}},
                  expert_bank<swiglu<float>>{7, 12, 9}, imitation_loss{}, diversity_loss{}, contest_balance{}};
  initialize(layer, 81);
  const matrix<float> x = test::random_matrix<float>(101, 12, 82);
  const matrix<float> dy = test::random_matrix<float>(101, 12, 83);
  const auto run = [&](executor_ref executor) {
    zero_gradients(layer);
    decltype(layer)::tape tape;
    matrix<float> y(101, 12), dx(101, 12);
    routing_context<float> context;
    context.training = true;
    context.executor = executor;
    layer.forward(x, y, tape, context);
    layer.backward(dy, dx, tape);
    std::vector<float> numbers(tape.losses.begin(), tape.losses.end());
    numbers.insert(numbers.end(), y.data(), y.data() + y.size());
    numbers.insert(numbers.end(), dx.data(), dx.data() + dx.size());
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

TEST_CASE("compete: imitation makes the router foresee the winners", "[router][compete]") {
  moe_layer layer{compete_router{router_to_compete{6, 4, {.top_k = 2}}, {.responses = response::norm, .frequency = 1}},
                  expert_bank<swiglu<double>>{4, 6, 8}, imitation_loss{}};
  initialize(layer, 91);
  const matrix<double> x = test::random_matrix<double>(64, 6, 92);
  const matrix<double> zero = matrix<double>::Zero(64, 6);
  matrix<double> y(64, 6), dx(64, 6);
  decltype(layer)::tape tape;
  double first = 0;
  for (int step = 0; step < 200; ++step) {
    zero_gradients(layer);
    layer.forward(x, y, tape, training_step(step));
    if (step == 0) first = tape.loss();
    layer.backward(zero, dx, tape);
    parameter<double>& w = layer.router().base().gate().weight();
    for (std::size_t i = 0; i < w.value().size(); ++i) w.value()[i] -= 10 * w.gradient()[i];
  }
  CHECK(tape.loss() < 0.75 * first);  // a linear gate cannot follow the norms all the way
}
