#include <sluice/capacity/batch_priority.hpp>

#include "capacity_support.hpp"

using namespace sluice;

TEST_CASE("batch_priority: equals the definition for both priorities", "[capacity]") {
  const index_t k = GENERATE(index_t(1), index_t(3));
  const auto by = GENERATE(batch_priority::best_score, batch_priority::sum_of_weights);
  CAPTURE(k, int(by));
  choice_table<double> choices = test::drawn_choices(50, 6, k, 21);
  const batch_priority_capacity policy(capacity_limit::fixed(4), by);
  for (const token_range group : {token_range{0, 20}, token_range{20, 50}}) {
    const index_t first = choices.order.size();
    auto tokens = test::tokens_of(group);
    const auto priority = [&](index_t t) {
      double sum = 0;
      for (index_t j = 0; j < k; ++j) sum += choices.weight[t * k + j];
      return by == batch_priority::best_score ? choices.weight[t * k] : sum;
    };
    std::stable_sort(tokens.begin(), tokens.end(), [&](index_t a, index_t b) { return priority(a) > priority(b); });
    policy.serve(choices, group, 6, routing_context<double>{});
    const auto order = test::by_rank(choices, tokens);
    const test::naive_served expected(choices, order, std::vector<index_t>(6, 4));
    REQUIRE(choices.order.size() == first + index_t(order.size()));
    for (std::size_t i = 0; i < order.size(); ++i) {
      CHECK(choices.order[first + index_t(i)] == order[i]);
      CHECK(choices.kept[order[i]] == expected.kept[std::size_t(order[i])]);
      CHECK(choices.slot[order[i]] == expected.slot[std::size_t(order[i])]);
    }
  }
}

TEST_CASE("batch_priority: the worked example drops the least sure token", "[capacity]") {
  choice_table<double> choices = test::fixture_choices();
  batch_priority_capacity(capacity_limit::fixed(2)).serve(choices, {0, 4}, 4, routing_context<double>{});
  CHECK(test::kept_pairs(choices) ==
        std::vector<std::pair<index_t, index_t>>{{2, 1}, {3, 0}, {0, 0}, {2, 2}, {3, 3}, {0, 1}});
}

TEST_CASE("batch_priority: equal priorities go by token, NaN comes last", "[capacity][ties]") {
  choice_table<double> choices;
  choices.reset(5, 1);
  for (index_t t = 0; t < 5; ++t) {
    choices.expert[t] = 0;
    choices.weight[t] = 0.5;
    choices.asked[t] = 1;
    choices.priority[t] = 0.5;
  }
  choices.priority[1] = quiet_nan<double>();
  batch_priority_capacity(capacity_limit::fixed(3)).serve(choices, {0, 5}, 2, routing_context<double>{});
  CHECK(std::vector<index_t>(choices.order.begin(), choices.order.end()) == std::vector<index_t>{0, 2, 3, 4, 1});
  CHECK(choices.kept[4] == 0);
}

TEST_CASE("batch_priority: what every capacity policy promises", "[capacity]") {
  test::check_served([](index_t C) { return batch_priority_capacity(capacity_limit::fixed(C)); }, 23, 5, 3, 27);
  test::check_served(
      [](index_t C) { return batch_priority_capacity(capacity_limit::fixed(C), batch_priority::sum_of_weights); }, 17,
      4, 4, 28);
}
