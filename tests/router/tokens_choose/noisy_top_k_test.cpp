#include <sluice/router/tokens_choose/noisy_top_k.hpp>

#include <sluice/capacity/batch_priority.hpp>

#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

using namespace sluice;
using test::copy_gate;

namespace {

const test::table_router noisy_in_table("noisy_top_k_router", [] {
  return test::made(noisy_top_k_router<double>{6, 4, {.top_k = 2}}, {.k = 2});
});
const test::table_router learned_noise_in_table("learned_noise_top_k_router", [] {
  return test::made(learned_noise_top_k_router<double>{6, 4, {.top_k = 2}}, {.k = 2});
});

template <typename Scalar>
using given_noisy = noisy_top_k_router<Scalar, dynamic, dynamic, copy_gate<Scalar>>;
template <typename Scalar>
using given_learned = learned_noise_top_k_router<Scalar, dynamic, dynamic, copy_gate<Scalar>>;

std::vector<double> normal_draws(index_t count, std::uint64_t seed) {
  std::vector<double> z(static_cast<std::size_t>(count));
  for (index_t i = 0; i < count; ++i) z[std::size_t(i)] = random_source(seed).normal(random_site::user_site, i);
  return z;
}

}  // namespace

TEST_CASE("noisy_top_k: recorded noise is added, scaled by 1/E, and chooses and weighs", "[router][noisy_top_k]") {
  const index_t T = 17, E = 6;
  const matrix<double> logits = test::random_matrix<double>(T, E, 1);
  const std::vector<double> z = normal_draws(T * E, 9);
  routing_context<double> context = test::training();
  context.random.replay(noise_site, z);
  const given_noisy<double> router(E, E, {.top_k = 2, .noise_std = 3});
  const auto result = test::route(router, logits, context);
  matrix<double> noisy = logits;
  for (index_t i = 0; i < noisy.size(); ++i) noisy.data()[i] += 3.0 / 6 * z[std::size_t(i)];
  CHECK(test::same_bits(matrix<double>(result.tape.seen.noisy().map()), noisy));
  CHECK(test::same_bits(matrix<double>(result.tape.seen.clean.map()), logits));
  CHECK(result.tape.seen.sigma == 0.5);
  for (index_t t = 0; t < T; ++t) {
    const auto order = test::sorted_positions(&noisy(t, 0), E);
    const auto p = test::naive_softmax(&noisy(t, 0), E);
    for (index_t j = 0; j < 2; ++j) {
      CHECK(result.tape.choices.expert[2 * t + j] == order[std::size_t(j)]);
      CHECK(std::abs(result.tape.choices.weight[2 * t + j] - p[std::size_t(order[std::size_t(j)])]) <=
            test::bound<double>(E));
    }
  }
}

TEST_CASE("noisy_top_k: no noise without training, or with a deviation of zero", "[router][noisy_top_k]") {
  const matrix<float> logits = test::random_matrix<float>(20, 5, 2);
  using plain = top_k_router<float, dynamic, dynamic, copy_gate<float>>;
  const std::string expected =
      test::plan_bits(test::route(plain(5, 5, {.top_k = 2, .weights = weighting::pre}), logits).plan);
  CHECK(test::plan_bits(test::route(given_noisy<float>(5, 5), logits).plan) == expected);
  routing_context<float> context;
  context.training = true;
  const auto silent = test::route(given_noisy<float>(5, 5, {.noise_std = 0}), logits, context);
  CHECK(test::plan_bits(silent.plan) == expected);
  CHECK_FALSE(silent.tape.seen.has_noise);
  CHECK(test::plan_bits(test::route(given_noisy<float>(5, 5), logits, context).plan) != expected);
}

TEST_CASE("noisy_top_k: the noise has mean 0 and deviation 1/E, and is another one in the next step",
          "[router][noisy_top_k]") {
  const index_t T = 25000, E = 4;
  const matrix<double> logits = matrix<double>::Zero(T, E);
  const auto noise_at = [&](std::uint64_t step) {
    routing_context<double> context = test::training();
    context.random = random_source(77, step);
    return matrix<double>(test::route(given_noisy<double>(E, E), logits, context).tape.seen.noisy().map());
  };
  const matrix<double> noise = noise_at(0);
  // 1e5 draws: the mean is good to 0.0032 sigma, the deviation to 0.0022 sigma; bounds are four times that.
  CHECK(std::abs(noise.mean()) < 4 * 0.0032 / 4);
  CHECK(std::abs(std::sqrt(noise.squaredNorm() / 1e5) - 0.25) < 4 * 0.0022 / 4);
  const matrix<double> next = noise_at(1);
  // Independent: the correlation of 1e5 pairs is within 4 / sqrt(1e5).
  CHECK(std::abs((noise.array() * next.array()).mean()) / 0.0625 < 4 / std::sqrt(1e5));
}

TEST_CASE("noisy_top_k: with one expert the choice is constant", "[router][noisy_top_k]") {
  const auto result =
      test::route(given_noisy<double>(1, 1, {.top_k = 1}), test::random_matrix<double>(9, 1, 3), test::training());
  CHECK(result.plan.load(0) == 9);
  for (const double w : result.plan.weights()) CHECK(w == 1);
}

TEST_CASE("learned noise: equals the definition with recorded draws", "[router][noisy_top_k]") {
  const index_t T = 13, D = 5, E = 4;
  learned_noise_top_k_router<double> router(D, E, {.top_k = 2, .noise_epsilon = 0.01});
  initialize(router, 4);
  const matrix<double> wn = test::random_matrix<double>(E, D, 5);
  std::copy_n(wn.data(), wn.size(), router.noise().weight().data());
  const matrix<double> x = test::random_matrix<double>(T, D, 6);
  const std::vector<double> z = normal_draws(T * E, 7);
  routing_context<double> context = test::training();
  context.random.replay(noise_site, z);
  const auto result = test::route(router, x, context);
  const matrix<double> clean = x * router.gate().weight().map().transpose();
  for (index_t t = 0; t < T; ++t) {
    matrix<double> noisy(1, E);
    for (index_t e = 0; e < E; ++e) {
      const double s = std::log(1 + std::exp(x.row(t).dot(wn.row(e)))) + 0.01;
      noisy(0, e) = clean(t, e) + z[std::size_t(t * E + e)] * s;
      CHECK(std::abs(result.tape.seen.noise_std(t, e) - s) <= test::bound<double>(D, 4));
    }
    const auto order = test::sorted_positions(noisy.data(), E);
    const double margin = std::exp(noisy(0, order[1]) - noisy(0, order[0]));
    CHECK(result.tape.choices.expert[2 * t] == order[0]);
    CHECK(result.tape.choices.expert[2 * t + 1] == order[1]);
    CHECK(std::abs(result.tape.choices.weight[2 * t] - 1 / (1 + margin)) <= test::bound<double>(D, 8));
  }
  routing_context<double> inference;
  CHECK_FALSE(test::route(router, x, inference).tape.seen.has_noise);
}

TEST_CASE("learned noise: the noise of a new router is softplus(0) + epsilon everywhere", "[router][noisy_top_k]") {
  learned_noise_top_k_router<double> router(3, 4, {.noise_epsilon = 0.5});
  initialize(router, 4);
  const auto result = test::route(router, test::random_matrix<double>(5, 3, 6), test::training());
  for (index_t i = 0; i < 20; ++i)
    CHECK(std::abs(result.tape.seen.noise_std.data()[i] - (std::log(2.0) + 0.5)) <= test::bound<double>(1));
}

TEST_CASE("noisy_top_k: promises of every token-choice router", "[router][noisy_top_k]") {
  test::check_promises(given_noisy<float>(5, 5, {.top_k = 2}), 2);
  test::check_promises(given_learned<double>(5, 5, {.top_k = 3}), 3);
  test::check_promises(given_learned<double>(5, 5, {.top_k = 1}), 1);
  using prioritised = noisy_top_k_router<float, dynamic, dynamic, copy_gate<float>, batch_priority_capacity>;
  test::check_promises(prioritised(5, 5, {.top_k = 2}, batch_priority_capacity(capacity_limit::vmoe(0.6))), 2);
}

TEST_CASE("noisy_top_k: gradients equal central differences at fixed draws", "[router][noisy_top_k][gradient]") {
  const auto gaussian = test::check_router_gradients(noisy_top_k_router<double>(4, 5, {.top_k = 2, .noise_std = 4}), 9,
                                                     61, test::training(5));
  INFO(gaussian.describe());
  CHECK(gaussian.largest_error < 1e-6);
  learned_noise_top_k_router<double> router(4, 5, {.top_k = 2});
  const auto learned = test::check_router_gradients(router, 9, 71, test::training(6));
  INFO(learned.describe());
  CHECK(learned.largest_error < 1e-6);
}

TEST_CASE("noisy_top_k: bad options are refused with their numbers", "[router][noisy_top_k]") {
  CHECK_THROWS_WITH(noisy_top_k_router<float>(4, 8, {.noise_std = -2}), test::contains("-2"));
  CHECK_THROWS_AS(noisy_top_k_router<float>(4, 8, {.noise_std = quiet_nan<float>()}), std::invalid_argument);
  CHECK_THROWS_WITH(noisy_top_k_router<float>(4, 8, {.top_k = 9}), test::contains("k = 9"));
  CHECK_THROWS_WITH(learned_noise_top_k_router<float>(4, 8, {.noise_epsilon = -1}), test::contains("-1"));
}
