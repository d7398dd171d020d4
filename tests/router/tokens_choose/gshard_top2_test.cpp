#include <sluice/router/tokens_choose/gshard_top2.hpp>

#include <sluice/expert/simple.hpp>

#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

using namespace sluice;
using test::copy_gate;

namespace {

const test::table_router gshard_in_table("gshard_router", [] {
  return test::made(gshard_router<double>{6, 4}, {.k = 2, .training_capacity = 30, .inference_capacity = 48});
});

template <typename Scalar, typename Capacity = dropless>
using given_gshard = gshard_router<Scalar, dynamic, dynamic, copy_gate<Scalar>, Capacity>;

choice_policy<double> policy_of(further_choices policy, std::vector<double> threshold = {0.2}) {
  return {.policy = policy, .threshold = std::move(threshold)};
}

/// The definition, with recorded draws u [n,T]: weights of what is asked for and has room, first choices first.
matrix<double> naive_gshard(const matrix<double>& logits, index_t n, const choice_policy<double>& p,
                            const std::vector<double>& u, index_t capacity) {
  const index_t T = logits.rows(), E = logits.cols();
  matrix<double> combine = matrix<double>::Zero(T, E);
  std::vector<index_t> taken(std::size_t(E), 0);
  for (index_t j = 0; j < n; ++j)
    for (index_t t = 0; t < T; ++t) {
      const auto order = test::sorted_positions(&logits(t, 0), E);
      const auto prob = test::naive_softmax(&logits(t, 0), E);
      double sum = 0;
      for (index_t i = 0; i < n; ++i) sum += prob[std::size_t(order[std::size_t(i)])];
      const index_t e = order[std::size_t(j)];
      const double g = prob[std::size_t(e)] / sum;
      if (j > 0) {
        const double threshold = p.threshold.size() == 1 ? p.threshold[0] : p.threshold[std::size_t(j - 1)];
        if (p.policy == further_choices::none) continue;
        if (p.policy == further_choices::threshold && !(g > threshold)) continue;
        if (p.policy == further_choices::random && !(u[std::size_t(j * T + t)] < g / std::max(threshold, 1e-9)))
          continue;
      }
      if (taken[std::size_t(e)]++ < capacity) combine(t, e) = g;
    }
  return combine;
}

}  // namespace

TEST_CASE("gshard: equals the definition for every policy", "[router][gshard]") {
  const auto policy =
      GENERATE(further_choices::all, further_choices::none, further_choices::threshold, further_choices::random);
  const index_t n = GENERATE(index_t(2), index_t(3));
  const bool limited = GENERATE(false, true);
  CAPTURE(int(policy), n, limited);
  const index_t T = 60, E = 5;
  const matrix<double> logits = test::random_matrix<double>(T, E, 91);
  std::vector<double> u;
  for (index_t i = 0; i < n * T; ++i) u.push_back(random_source(6).uniform(random_site::user_site, i));
  const choice_policy<double> p = policy_of(policy, n == 2 ? std::vector<double>{0.4} : std::vector<double>{0.5, 0.3});
  const index_t capacity = limited ? 14 : T;
  const given_gshard<double, position_capacity> router(
      E, E, {.top_k = n, .training = p, .inference = policy_of(further_choices::none)},
      position_capacity(capacity_limit::fixed(capacity)));
  routing_context<double> context = test::training();
  context.random.replay(gshard_rule<double>::thinning_site, u);
  const auto result = test::route(router, logits, context);
  const matrix<double> expected = naive_gshard(logits, n, p, u, capacity);
  CHECK(test::largest_difference(result.plan.dense_weights(), expected) <= test::bound<double>(E));
  CHECK((expected.array() > 0).count() == result.plan.size());
  CHECK(result.plan.dropped().empty() != limited);

  context.training = false;  // the other policy: first choices only
  CHECK(test::route(router, logits, context).plan.size() <= T);
}

TEST_CASE("gshard: with tiny thresholds and room for all it is top-2 with renormalised weights", "[router][gshard]") {
  const matrix<double> logits = test::random_matrix<double>(50, 6, 92);
  const choice_policy<double> always = policy_of(further_choices::random, {0});
  const given_gshard<double> router(6, 6, {.training = always, .inference = always});
  const top_k_router<double, dynamic, dynamic, copy_gate<double>> top2(6, 6, {.top_k = 2});
  CHECK(test::plan_bits(test::route(router, logits, test::training()).plan) ==
        test::plan_bits(test::route(top2, logits).plan));
  CHECK(test::plan_bits(test::route(router, logits).plan) == test::plan_bits(test::route(top2, logits).plan));
}

TEST_CASE("gshard: a second choice of weight 0.25 is taken half the time at threshold 0.5", "[router][gshard]") {
  const index_t T = 10000;
  matrix<double> logits = matrix<double>::Constant(T, 3, -50);
  logits.col(0).setConstant(std::log(0.75));
  logits.col(2).setConstant(std::log(0.25));
  const choice_policy<double> p = policy_of(further_choices::random, {0.5});
  const given_gshard<double> router(3, 3, {.training = p, .inference = p});
  for (const bool training : {true, false}) {
    routing_context<double> context = test::training(23);
    context.training = training;
    const auto result = test::route(router, logits, context);
    CHECK(result.plan.load(0) == T);
    CHECK(std::abs(double(result.plan.load(2)) / double(T) - 0.5) < 0.02);  // four deviations of 0.005
  }
}

TEST_CASE("gshard: thinned choices stay in the denominators unless weights follow the drop", "[router][gshard]") {
  const matrix<double> logits = test::fixture_f<double>();
  given_gshard<double>::options options{.training = policy_of(further_choices::none)};
  const auto before = test::route(given_gshard<double>(4, 4, options), logits, test::training());
  CHECK(std::abs(before.plan.dense_weights()(0, 0) - 0.731059) < test::printed);
  CHECK(std::abs(before.plan.dense_weights()(1, 0) - 0.622459) < test::printed);
  CHECK(before.plan.size() == 4);
  options.renormalize_after_drop = true;
  const auto after = test::route(given_gshard<double>(4, 4, options), logits, test::training());
  for (const double w : after.plan.weights()) CHECK(w == 1);
}

TEST_CASE("gshard: renormalising before or after the drop", "[router][gshard]") {
  const matrix<double> logits = test::fixture_f<double>();
  using router = given_gshard<double, position_capacity>;
  const position_capacity two(capacity_limit::fixed(2));
  router::options options{.training = policy_of(further_choices::all)};
  const matrix<double> before = test::route(router(4, 4, options, two), logits, test::training()).plan.dense_weights();
  // Expert 0 keeps tokens 0 and 1, expert 1 tokens 2 (first choice) and 0.
  CHECK(before(3, 0) == 0);
  CHECK(before(1, 1) == 0);
  CHECK(std::abs(before(1, 0) - 0.622459) < test::printed);
  options.renormalize_after_drop = true;
  const matrix<double> after = test::route(router(4, 4, options, two), logits, test::training()).plan.dense_weights();
  CHECK(after(1, 0) == 1);
  CHECK(after(3, 3) == 1);
  CHECK(std::abs(after(0, 0) - 0.731059) < test::printed);
}

TEST_CASE("gshard: guards on the sum of weights", "[router][gshard]") {
  const matrix<double> logits = test::fixture_f<double>();
  const auto first = [&](given_gshard<double>::options o) {
    o.training.policy = further_choices::all;
    return test::route(given_gshard<double>(4, 4, o), logits, test::training()).plan.dense_weights()(0, 0);
  };
  const auto p = test::naive_softmax(&logits(0, 0), 4);
  CHECK(std::abs(first({}) - p[0] / (p[0] + p[1])) <= test::bound<double>(4));
  CHECK(std::abs(first({.smallest_sum = 2}) - p[0] / 2) <= test::bound<double>(4));
  CHECK(std::abs(first({.smallest_sum = 0, .added_to_sum = 0.5}) - p[0] / (p[0] + p[1] + 0.5)) <=
        test::bound<double>(4));
}

TEST_CASE("gshard: a second expert drawn under Gumbel noise is weighed by the clean softmax", "[router][gshard]") {
  const index_t T = 4000, E = 4;
  const matrix<double> logits = test::fixture_f<double>().row(0).replicate(T, 1);
  const given_gshard<double> router(E, E, {.training = {.policy = further_choices::all, .sampled = true}});
  const auto result = test::route(router, logits, test::training(3));
  const auto p = test::naive_softmax(&logits(0, 0), E);
  std::array<double, 4> second{};
  for (index_t t = 0; t < T; ++t) {
    CHECK(result.tape.choices.expert[2 * t] == 0);
    const index_t e = result.tape.choices.expert[2 * t + 1];
    REQUIRE((e > 0 && e < E));
    second[std::size_t(e)] += 1.0 / double(T);
    CHECK(std::abs(result.tape.choices.weight[2 * t] - p[0] / (p[0] + p[std::size_t(e)])) <= test::bound<double>(E));
  }
  // Gumbel-max draws expert e with probability p[e] / (1 - p[0]); 4000 draws are good to 0.008, the bound is four
  // times that.
  for (std::size_t e = 1; e < 4; ++e) CHECK(std::abs(second[e] - p[e] / (1 - p[0])) < 0.032);

  // Recorded draws decide, and inference samples nothing by itself.
  std::vector<double> draws(std::size_t(T * E), 0.0);
  draws[3] = 100;
  routing_context<double> context = test::training();
  context.random.replay(gshard_rule<double>::sampling_site, draws);
  const auto replayed = test::route(router, logits, context);
  CHECK(replayed.tape.choices.expert[1] == 3);
  CHECK(replayed.tape.choices.expert[3] == 1);
  CHECK_FALSE(replayed.tape.seen.has_noise);
  const given_gshard<double> all(E, E, {.top_k = E, .training = {.policy = further_choices::all, .sampled = true}});
  test::route(all, logits, test::training(4)).plan.validate();
}

TEST_CASE("gshard: straight-through dispatch sends the weights' gradient through the inputs too",
          "[router][gshard][gradient]") {
  // With identity experts the row of choice j is x and its gradient w_j dy, so dw_j = <dy,x> + <x, w_j dy>.
  const index_t T = 6, E = 4;
  const matrix<double> x = test::random_matrix<double>(T, E, 95);
  const matrix<double> dy = test::random_matrix<double>(T, E, 96);
  for (const bool straight_through : {false, true}) {
    given_gshard<double>::options o{.training = policy_of(further_choices::all), .straight_through = straight_through};
    moe_layer layer{given_gshard<double>(E, E, o), expert_bank<identity_expert<double>>(E, E)};
    decltype(layer)::tape tape;
    matrix<double> y(T, E), dx(T, E);
    layer.forward(x, y, tape);
    layer.backward(dy, dx, tape);
    for (index_t t = 0; t < T; ++t) {
      const index_t* ids = &tape.router.choices.expert[2 * t];
      const double* w = &tape.router.choices.weight[2 * t];
      const double inner = dy.row(t).dot(x.row(t));
      const double g[2] = {inner * (1 + straight_through * w[0]), inner * (1 + straight_through * w[1])};
      for (index_t e = 0; e < E; ++e) {
        double expected = dy(t, e) * (w[0] + w[1]);
        for (int j = 0; j < 2; ++j)
          if (ids[j] == e) expected += w[j] * (g[j] - w[0] * g[0] - w[1] * g[1]);
        CHECK(std::abs(dx(t, e) - expected) <= test::bound<double>(E, 8));
      }
    }
  }
}

TEST_CASE("gshard: promises of every token-choice router", "[router][gshard]") {
  const choice_policy<float> all{.policy = further_choices::all};
  test::check_promises(given_gshard<float>(5, 5, {.training = all}), 2);
  test::check_promises(given_gshard<double>(5, 5, {.top_k = 3}), -1);
  test::check_promises(given_gshard<float>(5, 5, {.training = {.policy = further_choices::all, .sampled = true}}), 2);
  using limited = given_gshard<float, position_capacity>;
  test::check_promises(limited(5, 5, {.straight_through = true}, position_capacity(capacity_limit::gshard(1.0))), -1);
  test::check_promises(limited(5, 5, {.renormalize_after_drop = true}, position_capacity(capacity_limit::gshard(0.5))),
                       -1);
}

TEST_CASE("gshard: gradients equal central differences at fixed draws", "[router][gshard][gradient]") {
  struct setting {
    const char* name;
    gshard_router<double>::options options;
  };
  const choice_policy<double> often{.threshold = {0.6}};
  const auto s = GENERATE_COPY(
      setting{"random", {.training = often}},
      setting{"random, top-3", {.top_k = 3, .training = {.threshold = {0.6, 0.4}}}},
      setting{"none", {.training = {.policy = further_choices::none}}},
      setting{"sampled, after the drop",
              {.training = {.policy = further_choices::all, .sampled = true}, .renormalize_after_drop = true}},
      setting{"random, after the drop", {.training = often, .renormalize_after_drop = true}},
      setting{"guards that matter", {.training = often, .smallest_sum = 0.9, .added_to_sum = 0.1}});
  CAPTURE(s.name);
  index_t dropped = 0;
  const auto report = test::check_router_gradients(
      gshard_router<double>(4, 5, s.options, position_capacity(capacity_limit::gshard(0.4))), 15, 97, test::training(3),
      &dropped);
  INFO(report.describe());
  CHECK(dropped > 0);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("gshard: bad options are refused with their numbers", "[router][gshard]") {
  using router = gshard_router<float>;
  CHECK_THROWS_WITH(router(4, 8, {.training = {.threshold = {-0.5F}}}), test::contains("-0.5"));
  CHECK_THROWS_WITH(router(4, 8, {.inference = {.threshold = {quiet_nan<float>()}}}), test::contains("nan"));
  CHECK_THROWS_WITH(router(4, 8, {.top_k = 4, .training = {.threshold = {0.1F, 0.2F}}}),
                    test::contains("k = 4") && test::contains("3 thresholds") && test::contains("2"));
  CHECK_THROWS_WITH(router(4, 8, {.training = {.threshold = {}}}), test::contains("there are 0"));
  CHECK_THROWS_WITH(router(4, 8, {.top_k = 1}), test::contains("k = 1"));
  CHECK_THROWS_WITH(router(4, 8, {.smallest_sum = -1}), test::contains("-1"));

  const router three(4, 8, {.top_k = 3, .training = {.threshold = {0.1F, 0.2F}}});
  routing_context<float> context;
  context.training = true;
  context.top_k = 5;
  const matrix<float> x = test::random_matrix<float>(3, 4, 1);
  CHECK_THROWS_WITH(test::route(three, x, context), test::contains("k = 5"));
  context.training = false;  // one threshold for all ranks
  CHECK_NOTHROW(test::route(three, x, context));
}
