#include <sluice/router/tokens_choose/sigmoid_top_k.hpp>

#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

using namespace sluice;
using test::copy_gate;

namespace {

const test::table_router sigmoid_in_table("sigmoid_router", [] {
  return test::made(sigmoid_router<double>{6, 4, {.top_k = 2}}, {.k = 2});
});

template <typename Scalar>
using given_sigmoid = sigmoid_router<Scalar, dynamic, dynamic, copy_gate<Scalar>>;

double sigmoid(double l) { return 1 / (1 + std::exp(-l)); }

struct naive_row {
  std::vector<index_t> ids;
  std::vector<double> weights;
};

/// The definition for one token, without group limit.
template <typename Scalar>
naive_row naive_sigmoid(const Scalar* logits, const std::vector<double>& bias, index_t k, bool renormalize,
                        double scaling) {
  std::vector<double> choosing(bias.size());
  for (std::size_t e = 0; e < bias.size(); ++e) choosing[e] = sigmoid(double(logits[e])) + bias[e];
  naive_row row;
  row.ids = test::sorted_positions(choosing.data(), index_t(bias.size()));
  row.ids.resize(std::size_t(k));
  double sum = 0;
  for (const index_t e : row.ids) sum += sigmoid(double(logits[e]));
  for (const index_t e : row.ids)
    row.weights.push_back(scaling * sigmoid(double(logits[e])) / (renormalize ? sum + 1e-20 : 1));
  return row;
}

void count_loads(routing_statistics& statistics, std::initializer_list<index_t> loads) {
  statistics.load.clear();
  statistics.load.resize(static_cast<index_t>(loads.size()));
  for (index_t e = 0; e < statistics.load.size(); ++e) statistics.load.add(e, loads.begin()[e]);
}

}  // namespace

TEMPLATE_TEST_CASE("sigmoid: equals the definition, the bias only chooses", "[router][sigmoid]", float, double) {
  using S = TestType;
  struct shape {
    index_t T, E, k;
  };
  const auto s = GENERATE(shape{0, 4, 2}, shape{1, 2, 2}, shape{33, 8, 3}, shape{6, 257, 8}, shape{4, 512, 512});
  const bool renormalize = GENERATE(true, false);
  CAPTURE(s.T, s.E, s.k, renormalize);
  given_sigmoid<S> router(s.E, s.E, {.top_k = s.k, .renormalize = renormalize, .scaling = S(2.5)});
  std::vector<double> bias(std::size_t(s.E));
  for (index_t e = 0; e < s.E; ++e)
    bias[std::size_t(e)] =
        double(router.bias()[std::size_t(e)] = S(0.3 * random_source(4).normal(random_site::user_site, e)));
  const matrix<S> logits = test::random_matrix<S>(s.T, s.E, 3);
  const auto result = test::route(router, logits);
  for (index_t t = 0; t < s.T; ++t) {
    const naive_row expected = naive_sigmoid(&logits(t, 0), bias, s.k, renormalize, 2.5);
    for (index_t j = 0; j < s.k; ++j) {
      CHECK(result.tape.choices.expert[t * s.k + j] == expected.ids[std::size_t(j)]);
      CHECK(std::abs(double(result.tape.choices.weight[t * s.k + j]) - expected.weights[std::size_t(j)]) <=
            double(test::bound<S>(s.k, S(2.5))));
    }
  }
}

TEST_CASE("sigmoid: other scores choose beside the bias and weigh as their definitions say", "[router][sigmoid]") {
  const auto kind = GENERATE(expert_scores::sqrt_softplus, expert_scores::softmax);
  const bool renormalize = GENERATE(true, false);
  const double smallest = GENERATE(0.0, 0.35);  // some sums are below
  CAPTURE(int(kind), renormalize, smallest);
  const index_t T = 40, E = 9, k = 3;
  given_sigmoid<double> router(E, E,
                               {.top_k = k,
                                .renormalize = renormalize,
                                .scaling = 1.5,
                                .scores = kind,
                                .smallest_sum = smallest,
                                .expert_scale = true});
  for (index_t e = 0; e < E; ++e) {
    router.bias()[std::size_t(e)] = 0.2 * random_source(4).normal(random_site::user_site, e);
    router.rule().scale()[std::size_t(e)] = 0.5 + 0.25 * double(e);
  }
  const matrix<double> logits = test::random_matrix<double>(T, E, 3);
  const auto result = test::route(router, logits);
  int small_sums = 0;
  for (index_t t = 0; t < T; ++t) {
    std::vector<double> scores, choosing;
    double total = 0;
    for (index_t e = 0; e < E; ++e) total += std::exp(logits(t, e));
    for (index_t e = 0; e < E; ++e) {
      scores.push_back(kind == expert_scores::softmax ? std::exp(logits(t, e)) / total
                                                      : std::sqrt(std::log(1 + std::exp(logits(t, e)))));
      choosing.push_back(scores.back() + router.bias()[std::size_t(e)]);
    }
    const auto ids = test::sorted_positions(choosing.data(), E);
    double sum = 0;
    for (index_t j = 0; j < k; ++j) sum += scores[std::size_t(ids[std::size_t(j)])];
    small_sums += sum < smallest;
    for (index_t j = 0; j < k; ++j) {
      const index_t e = ids[std::size_t(j)];
      CHECK(result.tape.choices.expert[t * k + j] == e);
      const double weight = scores[std::size_t(e)] / (renormalize ? std::max(sum, smallest) + 1e-20 : 1) * 1.5 *
                            router.rule().scale()[std::size_t(e)];
      CHECK(std::abs(result.tape.choices.weight[t * k + j] - weight) <= test::bound<double>(E, 5.0));
    }
  }
  CHECK((small_sums > 0) == (smallest > 0 && kind == expert_scores::softmax));
}

TEST_CASE("sigmoid: square roots of softplus stay finite at both ends", "[router][sigmoid]") {
  matrix<float> logits(1, 3);
  logits << -300, 90, 3e30F;
  given_sigmoid<float> router(3, 3, {.top_k = 3, .renormalize = false, .scores = expert_scores::sqrt_softplus});
  const auto result = test::route(router, logits);
  CHECK(result.tape.scores(0, 0) == 0);
  CHECK(std::abs(result.tape.scores(0, 1) - std::sqrt(90.0F)) <= test::bound<float>(1, 10.0F));
  CHECK(std::abs(result.tape.scores(0, 2) / std::sqrt(3e30F) - 1) <= test::bound<float>(1));
}

TEST_CASE("sigmoid: infinite square roots share what renormalised weights make up", "[router][sigmoid]") {
  constexpr float inf = std::numeric_limits<float>::infinity();
  matrix<float> logits(1, 4);
  logits << inf, 2, -inf, inf;
  given_sigmoid<float> router(4, 4, {.top_k = 3, .scaling = 2, .scores = expert_scores::sqrt_softplus});
  auto result = test::route(router, logits);
  CHECK(result.plan.invalid_tokens().empty());
  CHECK(result.plan.dense_weights() == (matrix<float>(1, 4) << 1, 0, 0, 1).finished());
  sparse_plan<float>::gradient gradient;
  gradient.weight.assign(3, 1.0F);
  result.tape.dseen.zero_like(result.tape.seen);
  matrix<float> dx = matrix<float>::Zero(1, 4);
  router.backward(logits, {}, result.plan, gradient, result.tape, dx);
  CHECK(dx.isZero(0));
}

TEST_CASE("sigmoid: the worked example", "[router][sigmoid]") {
  matrix<double> logits(1, 4);
  logits << 1.0, -0.5, 0.8, 0.6;
  const auto ids_of = [&](given_sigmoid<double>& router) {
    const auto result = test::route(router, logits);
    return std::vector<index_t>(result.tape.choices.expert.begin(), result.tape.choices.expert.end());
  };
  given_sigmoid<double> router(4, 4, {.top_k = 4});
  const auto scores = test::route(router, logits).tape.scores;
  CHECK(std::abs(scores(0, 0) - 0.731059) < test::printed);
  CHECK(std::abs(scores(0, 1) - 0.377541) < test::printed);
  CHECK(std::abs(scores(0, 2) - 0.689974) < test::printed);
  CHECK(std::abs(scores(0, 3) - 0.645656) < test::printed);
  CHECK(ids_of(router) == std::vector<index_t>{0, 2, 3, 1});
  router.bias()[0] = -0.3;
  CHECK(ids_of(router) == std::vector<index_t>{2, 3, 0, 1});

  given_sigmoid<double> limited(4, 4,
                                {.top_k = 2, .scaling = 2.5, .groups = {2, 1, group_limit::group_score::sum_of_two}});
  limited.bias()[0] = -0.3;
  CHECK(ids_of(limited) == std::vector<index_t>{2, 3});
  const auto plan = test::route(limited, logits).plan;
  CHECK(std::abs(plan.weights()[0] - 1.291477) < test::printed);
  CHECK(std::abs(plan.weights()[1] - 1.208523) < test::printed);
}

TEST_CASE("sigmoid: the bias moves towards the mean load", "[router][sigmoid]") {
  given_sigmoid<double> router(4, 4, {.bias_rate = 0.001});
  given_sigmoid<double>::tape tape;
  routing_statistics statistics;
  count_loads(statistics, {6, 1, 3, 2});
  router.after_step(statistics, tape);
  const auto bias = router.bias();
  CHECK(bias[0] == -0.001);
  CHECK(bias[1] == 0.001);
  CHECK(bias[2] == 0);
  CHECK(bias[3] == 0.001);
  router.rule().set_bias_rate(0);
  router.after_step(statistics, tape);
  CHECK(bias[0] == -0.001);
  router.rule().set_bias_rate(0.5);
  count_loads(statistics, {});  // nothing was routed since the last step
  router.after_step(statistics, tape);
  count_loads(statistics, {2, 2, 2, 2});
  router.after_step(statistics, tape);
  CHECK(bias[0] == -0.001);
  CHECK_THROWS_WITH(router.rule().set_bias_rate(-3), test::contains("-3"));
}

TEST_CASE("sigmoid: repeated updates balance a skewed load", "[router][sigmoid]") {
  moe_layer layer{given_sigmoid<float>(6, 6, {.top_k = 2, .bias_rate = 0.01F}), expert_bank<swiglu<float>>(6, 6, 2)};
  initialize(layer, 3);
  matrix<float> x = test::random_matrix<float>(600, 6, 8);
  x.col(2).array() += 1.5F;
  matrix<float> y(600, 6);
  decltype(layer)::tape tape;
  layer.forward(x, y, tape);
  const double before = tape.statistics.load_cv();
  CHECK(before > 0.4);
  for (int step = 0; step < 100; ++step) {
    layer.after_step(tape);
    layer.forward(x, y, tape);
  }
  // Steps of 0.01 move a few of 600 tokens: the loads end up within some percent of each other.
  CHECK(tape.statistics.load_cv() < 0.1);
}

TEST_CASE("sigmoid: the bias is a state, saved but neither learned nor counted", "[router][sigmoid]") {
  sigmoid_router<float> router(3, 5);
  std::string names;
  for_each_parameter(router, [&](const std::string& name, parameter<float>& p) {
    names += name + (p.is_learned() ? " learned, " : " state, ");
  });
  CHECK(names == "gate.weight learned, rule.bias state, ");
  CHECK(parameter_count(router) == 15);
  sigmoid_router<float> without(3, 5, {.selection_bias = false});
  CHECK(without.bias().empty());
  names.clear();
  for_each_parameter(without, [&](const std::string& name, parameter<float>&) { names += name; });
  CHECK(names == "gate.weight");
}

TEST_CASE("sigmoid: equal scores go to the lowest experts, extreme logits keep finite weights",
          "[router][sigmoid][ties]") {
  matrix<float> logits = matrix<float>::Zero(3, 4);
  logits.row(1).setConstant(-200);  // sigmoid underflows to zero
  logits.row(2) << 200, 30, std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity();
  for (const float guard : {1e-20F, 0.0F}) {
    const auto result = test::route(given_sigmoid<float>(4, 4, {.top_k = 3, .added_to_sum = guard}), logits);
    const std::vector<index_t> ids(result.tape.choices.expert.begin(), result.tape.choices.expert.end());
    CHECK(ids == std::vector<index_t>{0, 1, 2, 0, 1, 2, 0, 1, 2});
    for (index_t j = 0; j < 3; ++j) CHECK(std::abs(result.tape.choices.weight[j] - 1.0F / 3) <= test::bound<float>(3));
    for (index_t j = 3; j < 6; ++j) CHECK(result.tape.choices.weight[j] == 0.0F);
    for (index_t j = 6; j < 9; ++j) CHECK(std::abs(result.tape.choices.weight[j] - 1.0F / 3) <= test::bound<float>(3));
  }
}

TEST_CASE("sigmoid: k can be given by the call, within the group limit", "[router][sigmoid]") {
  const given_sigmoid<double> router(8, 8, {.top_k = 2, .groups = {4, 2, group_limit::group_score::sum_of_two}});
  const matrix<double> logits = test::random_matrix<double>(9, 8, 4);
  for (index_t k = 1; k <= 8; ++k) {
    CAPTURE(k);
    routing_context<double> context;
    context.top_k = k;
    if (k <= 4) {
      const auto result = test::route(router, logits, context);
      CHECK(result.plan.size() == 9 * k);
      for (index_t t = 0; t < 9; ++t)
        CHECK(std::abs(result.plan.dense_weights().row(t).sum() - 1) <= test::bound<double>(k));
    } else {
      CHECK_THROWS_WITH(test::route(router, logits, context), test::contains("k = " + std::to_string(k)));
    }
  }
  routing_context<double> context = test::training();
  context.top_k = 1;
  CHECK_THROWS_WITH(test::route(router, logits, context), test::contains("k = 1"));
}

TEST_CASE("sigmoid: weights on the experts' inputs", "[router][sigmoid]") {
  const matrix<double> logits = test::random_matrix<double>(7, 5, 4);
  given_sigmoid<double>::options options{.top_k = 1, .renormalize = false, .selection_bias = false};
  const auto on_output = test::route(given_sigmoid<double>(5, 5, options), logits);
  options.use = weight_use::input;
  const auto on_input = test::route(given_sigmoid<double>(5, 5, options), logits);
  REQUIRE(on_input.plan.has_input_scale());
  CHECK_FALSE(on_output.plan.has_input_scale());
  for (index_t i = 0; i < 7; ++i) {
    CHECK(on_input.plan.weight(i) == 1);
    CHECK(on_input.plan.input_scale(i) == on_output.plan.weight(i));
  }
}

TEST_CASE("sigmoid: promises of every token-choice router", "[router][sigmoid]") {
  test::check_promises(given_sigmoid<float>(6, 6, {.top_k = 2}), 2);
  test::check_promises(
      given_sigmoid<double>(6, 6, {.top_k = 2, .groups = {2, 1, group_limit::group_score::sum_of_two}}), 2);
  test::check_promises(
      given_sigmoid<float>(5, 5, {.top_k = 1, .renormalize = false, .selection_bias = false, .use = weight_use::input}),
      1);
}

TEST_CASE("sigmoid: gradients equal central differences", "[router][sigmoid][gradient]") {
  struct setting {
    const char* name;
    sigmoid_router<double>::options options;
  };
  const auto s = GENERATE(
      setting{"DeepSeek-V3", {.top_k = 3, .scaling = 2.5, .groups = {3, 2, group_limit::group_score::sum_of_two}}},
      setting{"not renormalised", {.top_k = 2, .renormalize = false, .scaling = 1.5}},
      setting{"a guard that matters", {.top_k = 2, .added_to_sum = 0.7}},
      setting{"Llama-4", {.top_k = 1, .renormalize = false, .selection_bias = false, .use = weight_use::input}},
      setting{"DeepSeek-V4", {.top_k = 3, .scaling = 1.5, .scores = expert_scores::sqrt_softplus}},
      setting{"Ernie", {.top_k = 3, .added_to_sum = 0, .scores = expert_scores::softmax, .smallest_sum = 0.6}},
      setting{"LongCat", {.top_k = 2, .renormalize = false, .scaling = 6, .scores = expert_scores::softmax}},
      setting{"Gemma",
              {.top_k = 2, .selection_bias = false, .scores = expert_scores::softmax, .expert_scale = true}},
      setting{"k = E", {.top_k = 6}});
  CAPTURE(s.name);
  sigmoid_router<double> router(4, 6, s.options);
  for (std::size_t e = 0; e < router.bias().size(); ++e) router.bias()[e] = 0.2 * double(e % 3);
  for (std::size_t e = 0; e < router.rule().scale().size(); ++e) router.rule().scale()[e] = 0.5 + double(e);
  const auto report = test::check_router_gradients(router, 8, 81, test::training());
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("sigmoid: the gradient does not vanish where the score rounds to one", "[router][sigmoid][gradient]") {
  // In float 1 - sigmoid(20) is 0, the true slope 2.1e-9.
  const given_sigmoid<float> constant(2, 2, {.top_k = 1, .renormalize = false, .selection_bias = false});
  given_sigmoid<float> router = constant;
  matrix<float> logits(1, 2);
  logits << 20, 0;
  auto result = test::route(router, logits);
  result.tape.dseen.zero_like(result.tape.seen);
  sparse_plan_gradient<float> gradient;
  gradient.weight.assign(1, 1.0F);
  matrix<float> dx = matrix<float>::Zero(1, 2);
  router.backward(logits, {}, result.plan, gradient, result.tape, dx);
  const double slope = std::exp(-20.0) / ((1 + std::exp(-20.0)) * (1 + std::exp(-20.0)));
  CHECK(std::abs(double(dx(0, 0)) - slope) <= double(test::bound<float>(1)) * slope);
  CHECK(dx(0, 1) == 0);
}

TEST_CASE("sigmoid: scores that nearly vanish give gradients that are numbers", "[router][sigmoid][gradient]") {
  const given_sigmoid<float> router(2, 2, {.top_k = 2, .selection_bias = false, .added_to_sum = 0});
  for (const float low : {-60.0F, -87.0F, -95.2F, -103.0F}) {
    CAPTURE(low);
    matrix<float> logits(1, 2);
    logits << low, -236.7F;
    given_sigmoid<float> own = router;
    auto result = test::route(own, logits);
    result.tape.dseen.zero_like(result.tape.seen);
    sparse_plan_gradient<float> gradient;
    gradient.weight.resize(result.plan.size());
    for (index_t i = 0; i < result.plan.size(); ++i) gradient.weight[i] = result.plan.expert(i) == 0 ? 1.0F : -2.0F;
    matrix<float> dx = matrix<float>::Zero(1, 2);
    own.backward(logits, {}, result.plan, gradient, result.tape, dx);
    CHECK(dx.array().isFinite().all());
    CHECK(std::abs(dx(0, 0)) <= 1e-6F);  // the weights are 1 and 0, whatever the first logit is
  }
}

TEST_CASE("sigmoid: experts that are left out are chosen by nobody in training", "[router][sigmoid]") {
  const index_t T = 200, E = 6;
  const given_sigmoid<double> router(
      E, E, {.top_k = 2, .renormalize = false, .selection_bias = false, .expert_dropout = 0.6});
  const matrix<double> logits = test::random_matrix<double>(T, E, 5);
  const auto context = test::training();
  const auto r = test::route(router, logits, context);
  index_t none = 0;
  for (index_t t = 0; t < T; ++t) {
    std::vector<double> left(as_size(E), -HUGE_VAL);
    index_t count = 0;
    for (index_t e = 0; e < E; ++e) {
      if (context.random.uniform(sigmoid_rule<double>::site, t * E + e) < 0.6) continue;
      left[as_size(e)] = logits(t, e);
      ++count;
    }
    const auto order = test::sorted_positions(left.data(), E);
    const auto own = r.plan.of_token(t);
    REQUIRE(index_t(own.size()) == std::min<index_t>(2, count));
    none += own.empty();
    for (std::size_t j = 0; j < own.size(); ++j) {
      CHECK(r.plan.expert(own[j]) == order[j]);
      CHECK(r.plan.weight(own[j]) == Approx(1 / (1 + std::exp(-logits(t, order[j])))).epsilon(1e-14));
    }
  }
  CHECK(none > 0);
  CHECK(test::route(router, logits).plan.size() == 2 * T);
  CHECK_THROWS_WITH((given_sigmoid<double>(E, E, {.expert_dropout = 1})), test::contains("chance of 1"));
}

TEST_CASE("sigmoid: bad options are refused with their numbers", "[router][sigmoid]") {
  using router = sigmoid_router<float>;
  CHECK_THROWS_WITH(router(4, 8, {.top_k = 9}), test::contains("k = 9") && test::contains("E = 8"));
  CHECK_THROWS_WITH(router(4, 8, {.top_k = 1}), test::contains("k = 1"));
  CHECK_THROWS_WITH(router(4, 8, {.bias_rate = -1}), test::contains("-1"));
  CHECK_THROWS_WITH(router(4, 8, {.added_to_sum = -1}), test::contains("-1"));
  CHECK_THROWS_WITH(router(4, 8, {.scaling = 0}), test::contains("scaled by 0"));
  CHECK_THROWS_WITH(router(4, 8, {.groups = {.groups = 3}}), test::contains("groups = 3"));
  CHECK_THROWS_WITH(router(4, 8, {.top_k = 5, .groups = {.groups = 4, .kept = 2}}), test::contains("k = 5"));
  CHECK_THROWS_WITH((sigmoid_router<float, 8, 2>(4, 8, {.top_k = 3})), test::contains("3"));
  CHECK_THROWS_WITH(router(4, 0), test::contains("E = 0"));
}
