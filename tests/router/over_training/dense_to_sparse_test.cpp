#include <sluice/router/over_training/dense_to_sparse.hpp>
#include <sluice/router/over_training/mean_active.hpp>

#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

using namespace sluice;
using test::copy_gate;

namespace {

using given_evo = dense_to_sparse_router<double, copy_gate<double>>;
using given_mean = mean_active_router<double, copy_gate<double>>;

const test::table_router dense_to_sparse_in_table("dense_to_sparse_router", [] {
  return test::made(dense_to_sparse_router<double>{6, 4, {.temperature = {2, .3, 100}, .threshold = .15}});
});
const test::table_router mean_active_in_table("mean_active_router", [] {
  return test::made(mean_active_router<double>{6, 4, {.temperature = {2, .3, 100}, .threshold = .15}}, {.k = 1});
});

/// Fixture F and noise that is replayed, no more than to keep ties away.
struct noisy_fixture {
  std::vector<double> draws;
  routing_context<double> context = test::training();

  explicit noisy_fixture(double size) {
    const matrix<double> numbers = size * test::random_matrix<double>(4, 4, 8);
    draws.assign(numbers.data(), numbers.data() + numbers.size());
    context.random.replay(noise_site, draws);
  }
  std::vector<double> q(index_t t, double tau) const {
    const matrix<double> logits = test::fixture_f<double>();
    std::vector<double> row;
    for (index_t e = 0; e < 4; ++e) row.push_back((logits(t, e) + draws[as_size(4 * t + e)]) / tau);
    return test::naive_softmax(row.data(), 4);
  }
};

}  // namespace

TEST_CASE("temperature_schedule: EvoMoE's worked example", "[router][dense_to_sparse]") {
  const temperature_schedule linear{2, .3, 1000, cooling::linear}, exponential{2, .3, 1000, cooling::exponential};
  CHECK(linear(0) == 2);
  CHECK(linear(500) == Approx(1.15).epsilon(1e-15));
  CHECK(std::abs(exponential(500) - 0.774597) < test::printed);
  for (const index_t step : {1000, 5000}) CHECK((linear(step) == .3 && exponential(step) == .3));
  CHECK(temperature_schedule{.first = .7}(123) == .7);
}

TEST_CASE("dense_to_sparse: training activates what exceeds the threshold, best first", "[router][dense_to_sparse]") {
  const bool gumbel = GENERATE(false, true);
  const double tau = 0.5, theta = 0.04;
  const noisy_fixture f(0.3);
  const auto r =
      test::route(given_evo(4, 4, {.temperature = {.first = tau}, .threshold = theta, .gumbel_weights = gumbel}),
                  test::fixture_f<double>(), f.context);
  CHECK(r.tape.seen.top_k == 4);
  const matrix<double> logits = test::fixture_f<double>();
  for (index_t t = 0; t < 4; ++t) {
    const auto q = f.q(t, tau), p = test::naive_softmax(&logits(t, 0), 4);
    std::size_t active = 0;
    for (const double v : q) active += v > theta;
    const auto own = r.plan.of_token(t);
    REQUIRE(own.size() == active);
    CHECK(active < 4);  // or the threshold would not show
    const auto order = test::sorted_positions(q.data(), 4);
    for (std::size_t j = 0; j < active; ++j) {
      CHECK(r.plan.expert(own[j]) == order[j]);
      CHECK(std::abs(r.plan.weight(own[j]) - (gumbel ? q : p)[as_size(order[j])]) <= test::bound<double>(4));
    }
  }
}

TEST_CASE("dense_to_sparse: one expert from a step on, and at inference without noise", "[router][dense_to_sparse]") {
  noisy_fixture f(2);
  const given_evo router(4, 4, {.temperature = {2, .3, 10}, .threshold = 0, .hard_from = 10});
  const matrix<double> logits = test::fixture_f<double>();
  f.context.step = 9;
  CHECK(test::route(router, logits, f.context).plan.size() == 16);  // theta is 0: all
  f.context.step = 10;
  const auto hard = test::route(router, logits, f.context);
  const auto inferred = test::route(router, logits);
  bool differs = false;
  for (index_t t = 0; t < 4; ++t) {
    const auto q = f.q(t, .3);
    const index_t best = test::sorted_positions(q.data(), 4)[0], clean = test::sorted_positions(&logits(t, 0), 4)[0];
    REQUIRE((hard.plan.of_token(t).size() == 1 && inferred.plan.of_token(t).size() == 1));
    CHECK(hard.plan.expert(hard.plan.of_token(t)[0]) == best);
    CHECK(inferred.plan.expert(inferred.plan.of_token(t)[0]) == clean);
    CHECK(inferred.plan.weight(inferred.plan.of_token(t)[0]) ==
          Approx(test::naive_softmax(&logits(t, 0), 4)[as_size(clean)]).epsilon(1e-14));
    differs |= best != clean;
  }
  CHECK(differs);
  f.context.step = 9;
  f.context.top_k = 2;
  CHECK(test::route(router, logits, f.context).plan.size() == 8);
}

TEST_CASE("dense_to_sparse: as the temperature falls without noise one expert is left", "[router][dense_to_sparse]") {
  const noisy_fixture f(0);
  const auto r = test::route(given_evo(4, 4, {.temperature = {.first = 1e-3}}), test::fixture_f<double>(), f.context);
  CHECK(r.plan.size() == 4);
}

TEST_CASE("dense_to_sparse: a quarter of the tokens an expert at evaluation, all in training",
          "[router][dense_to_sparse]") {
  const dense_to_sparse_router<double, copy_gate<double>, position_capacity> router(4, 4, {}, evaluation_capacity());
  matrix<double> logits(10, 4);
  logits.rowwise() = test::fixture_f<double>().row(0);
  CHECK(test::route(router, logits).plan.load(0) == 3);  // ceil(0.25 * 10)
  CHECK(test::route(router, logits, test::training()).plan.size() == 40);
  CHECK_THROWS_WITH(evaluation_capacity(4), test::contains("cannot take 4 of"));
  CHECK_THROWS_AS(evaluation_capacity(0), std::invalid_argument);
  STATIC_REQUIRE(!decltype(router)::causal);
  STATIC_REQUIRE(given_evo::causal);
}

TEST_CASE("dense_to_sparse: promises and gradients", "[router][dense_to_sparse][gradient]") {
  test::check_promises(given_evo(5, 5, {.temperature = {.first = 0.3}, .hard_from = 0}), 1);
  for (const bool gumbel : {false, true}) {
    dense_to_sparse_router<double> router(6, 4,
                                          {.temperature = {.first = .6}, .threshold = .15, .gumbel_weights = gumbel});
    initialize(router, 3);
    const auto report = test::conformance(router);
    INFO(report.describe());
    CHECK(report.passed());
    for (const auto& context : {test::training(), routing_context<double>{}}) {
      const auto gradients = test::check_router_gradients(router, 8, 82, context);
      INFO(gradients.describe());
      CHECK(gradients.largest_error < 1e-6);
    }
  }
}

TEST_CASE("mean_active: all tokens of a group take as many experts as one activates on average",
          "[router][mean_active]") {
  const double tau = 0.5, theta = 0.04;
  const noisy_fixture f(0.3);
  const matrix<double> logits = test::fixture_f<double>();
  index_t active = 0;
  for (index_t t = 0; t < 4; ++t)
    for (const double v : f.q(t, tau)) active += v > theta;
  REQUIRE(active % 4 != 0);  // so that the floor matters
  const auto r = test::route(given_mean(4, 4, {.temperature = {.first = tau}, .threshold = theta}), logits, f.context);
  for (index_t t = 0; t < 4; ++t) {
    const auto q = f.q(t, tau);
    const auto order = test::sorted_positions(q.data(), 4);
    const auto own = r.plan.of_token(t);
    REQUIRE(index_t(own.size()) == active / 4);
    for (std::size_t j = 0; j < own.size(); ++j) {
      CHECK(r.plan.expert(own[j]) == order[j]);
      CHECK(std::abs(r.plan.weight(own[j]) - q[as_size(order[j])]) <= test::bound<double>(4));
    }
  }
  const auto at_least = test::route(given_mean(4, 4, {.top_k = 3, .threshold = 0.9}), logits, f.context);
  CHECK(at_least.plan.size() == 12);
  auto bounded = f.context;  // a call's k is a bound, also of the least
  for (const index_t k : {1, 2, 4}) {
    bounded.top_k = k;
    CHECK(test::route(given_mean(4, 4, {.top_k = 3, .threshold = 0.9}), logits, bounded).plan.size() ==
          4 * (std::min<index_t>)(k, 3));
  }
  const auto inferred = test::route(given_mean(4, 4, {.top_k = 2}), logits);
  CHECK(inferred.plan.size() == 8);
  CHECK(inferred.plan.weight(inferred.plan.of_token(0)[0]) == Approx(1 / (1 + std::exp(-1.0))).epsilon(1e-14));
}

TEST_CASE("mean_active: promises and gradients", "[router][mean_active][gradient]") {
  mean_active_router<double> router(linear_gate<double>(6, 4, {.bias = true}),
                                    {.top_k = 2, .temperature = {.first = .6}, .threshold = .15});
  initialize(router, 3);
  const auto report = test::conformance(router);
  INFO(report.describe());
  CHECK(report.passed());
  for (const auto& context : {test::training(), routing_context<double>{}}) {
    const auto gradients = test::check_router_gradients(router, 8, 82, context);
    INFO(gradients.describe());
    CHECK(gradients.largest_error < 1e-6);
  }
}

TEST_CASE("dense_to_sparse, mean_active: bad options are refused with their numbers", "[router][dense_to_sparse]") {
  CHECK_THROWS_WITH(given_evo(4, 4, {.threshold = 0.25}), test::contains("E = 4 and a threshold of 0.25"));
  CHECK_THROWS_WITH(given_evo(4, 4, {.temperature = {1, 2, 5}}), test::contains("to 2 in 5"));
  CHECK_THROWS_WITH(given_mean(4, 4, {.threshold = -1}), test::contains("cannot be -1"));
  CHECK_THROWS_AS(given_mean(4, 4, {.top_k = 5}), std::invalid_argument);
}
