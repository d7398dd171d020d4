#include <sluice/capacity/probability.hpp>

#include "capacity_support.hpp"

using namespace sluice;

TEST_CASE("probability: each expert keeps its largest weights", "[capacity]") {
  const index_t k = GENERATE(index_t(1), index_t(3));
  const index_t capacity = GENERATE(index_t(1), index_t(5));
  CAPTURE(k, capacity);
  choice_table<double> choices = test::drawn_choices(40, 6, k, 31);
  const probability_capacity policy(capacity_limit::fixed(capacity));
  for (const token_range group : {token_range{0, 18}, token_range{18, 40}}) {
    policy.serve(choices, group, 6, routing_context<double>{});
    for (index_t e = 0; e < 6; ++e) {
      std::vector<index_t> wanting;  // the column of expert e
      for (index_t pair = group.begin * k; pair < group.end * k; ++pair)
        if (choices.asked[pair] && choices.expert[pair] == e) wanting.push_back(pair);
      std::stable_sort(wanting.begin(), wanting.end(),
                       [&](index_t a, index_t b) { return choices.weight[a] > choices.weight[b]; });
      for (std::size_t i = 0; i < wanting.size(); ++i) CHECK(choices.kept[wanting[i]] == (index_t(i) < capacity));
    }
  }
}

TEST_CASE("probability: a large second choice beats a small first one, equal weights go by token", "[capacity][ties]") {
  choice_table<double> choices;
  choices.reset(3, 2);
  const std::array<index_t, 6> experts{1, 0, 0, 1, 0, 1};
  const std::array<double, 6> weights{0.5, 0.4, 0.3, 0.2, 0.4, 0.1};
  for (index_t pair = 0; pair < 6; ++pair) {
    choices.expert[pair] = experts[std::size_t(pair)];
    choices.weight[pair] = weights[std::size_t(pair)];
    choices.asked[pair] = 1;
  }
  probability_capacity(capacity_limit::fixed(1)).serve(choices, {0, 3}, 2, routing_context<double>{});
  CHECK(test::kept_pairs(choices) == std::vector<std::pair<index_t, index_t>>{{0, 1}, {0, 0}});
}

TEST_CASE("probability: what every capacity policy promises", "[capacity]") {
  test::check_served([](index_t C) { return probability_capacity(capacity_limit::fixed(C)); }, 23, 5, 3, 37);
}
