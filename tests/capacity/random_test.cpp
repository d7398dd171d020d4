#include <sluice/capacity/random.hpp>

#include "capacity_support.hpp"

using namespace sluice;

namespace {

routing_context<double> training(std::uint64_t seed) {
  routing_context<double> context;
  context.training = true;
  context.random = random_source(seed);
  return context;
}

}  // namespace

TEST_CASE("random: each expert keeps the choices with the largest recorded draws", "[capacity]") {
  const index_t T = 30, k = 2;
  std::vector<double> draws;
  for (index_t i = 0; i < k * T; ++i) draws.push_back(random_source(4).uniform(random_site::user_site, i));
  routing_context<double> context = training(1);
  context.random.replay(random_capacity::site, draws);
  choice_table<double> choices = test::drawn_choices(T, 4, k, 41);
  const random_capacity policy(capacity_limit::fixed(6));
  for (const token_range group : {token_range{0, 16}, token_range{16, 30}}) {
    policy.serve(choices, group, 4, context);
    for (index_t e = 0; e < 4; ++e) {
      std::vector<index_t> wanting;
      for (index_t pair = group.begin * k; pair < group.end * k; ++pair)
        if (choices.asked[pair] && choices.expert[pair] == e) wanting.push_back(pair);
      const auto draw = [&](index_t pair) { return draws[std::size_t(pair % k * T + pair / k)]; };
      std::stable_sort(wanting.begin(), wanting.end(), [&](index_t a, index_t b) { return draw(a) > draw(b); });
      for (std::size_t i = 0; i < wanting.size(); ++i) CHECK(choices.kept[wanting[i]] == (i < 6));
    }
  }
}

TEST_CASE("random: every place in the batch survives equally often", "[capacity]") {
  const index_t T = 10, rounds = 4000;
  std::array<index_t, 10> survived{};
  for (index_t round = 0; round < rounds; ++round) {
    choice_table<double> choices;
    choices.reset(T, 1);
    choices.expert.fill(0);
    choices.asked.fill(1);
    random_capacity(capacity_limit::fixed(3)).serve(choices, {0, T}, 1, training(std::uint64_t(round) + 1000));
    for (index_t t = 0; t < T; ++t) survived[std::size_t(t)] += choices.kept[t];
  }
  // Binomial with p = 0.3: deviation 29 of 1200; the bound is four of them.
  for (const index_t n : survived) CHECK(std::abs(n - 1200) < 116);
}

TEST_CASE("random: inference goes by position", "[capacity]") {
  choice_table<double> choices = test::fixture_choices();
  random_capacity(capacity_limit::fixed(2)).serve(choices, {0, 4}, 4, routing_context<double>{});
  CHECK(test::kept_pairs(choices) ==
        std::vector<std::pair<index_t, index_t>>{{0, 0}, {1, 0}, {2, 1}, {0, 1}, {2, 2}, {3, 3}});
}

TEST_CASE("random: what every capacity policy promises", "[capacity]") {
  test::check_served([](index_t C) { return random_capacity(capacity_limit::fixed(C)); }, 23, 5, 3, 47, true);
  test::check_served([](index_t C) { return random_capacity(capacity_limit::fixed(C)); }, 23, 5, 3, 48, false);
}
