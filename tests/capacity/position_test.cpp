#include <sluice/capacity/position.hpp>

#include "capacity_support.hpp"

using namespace sluice;

TEST_CASE("position: equals the definition, group by group", "[capacity]") {
  const index_t k = GENERATE(index_t(1), index_t(2), index_t(4));
  const index_t capacity = GENERATE(index_t(1), index_t(3), index_t(8));
  CAPTURE(k, capacity);
  choice_table<double> choices = test::drawn_choices(40, 6, k, 5);
  const position_capacity policy(capacity_limit::fixed(capacity));
  for (const token_range group : {token_range{0, 13}, token_range{13, 13}, token_range{13, 14}, token_range{14, 40}}) {
    const index_t first = choices.order.size();
    policy.serve(choices, group, 6, routing_context<double>{});
    const auto order = test::by_rank(choices, test::tokens_of(group));
    const test::naive_served expected(choices, order, std::vector<index_t>(6, capacity));
    REQUIRE(choices.order.size() == first + index_t(order.size()));
    for (std::size_t i = 0; i < order.size(); ++i) {
      CHECK(choices.order[first + index_t(i)] == order[i]);
      CHECK(choices.kept[order[i]] == expected.kept[std::size_t(order[i])]);
      CHECK(choices.slot[order[i]] == expected.slot[std::size_t(order[i])]);
    }
  }
}

TEST_CASE("position: the worked example", "[capacity]") {
  choice_table<double> choices = test::fixture_choices();
  position_capacity(capacity_limit::vmoe(1, capacity_rounding::up, 0))
      .serve(choices, {0, 4}, 4, routing_context<double>{});
  CHECK(test::kept_pairs(choices) ==
        std::vector<std::pair<index_t, index_t>>{{0, 0}, {1, 0}, {2, 1}, {0, 1}, {2, 2}, {3, 3}});
  CHECK(choices.slot[3 * 2] == 2);      // the third token for expert 0
  CHECK(choices.slot[1 * 2 + 1] == 2);  // the third for expert 1
}

TEST_CASE("position: by token, an expert keeps the first tokens that chose it, as whichever choice", "[capacity]") {
  // Expert 0 is chosen by tokens 0 (second), 1 (first), 2 (second), 3 (first); its two places go to tokens 0 and 1, where
  // the order by rank gives them to 1 and 3. cumsum of the 0/1 matrix of all choices over the tokens, below C, by hand.
  choice_table<double> choices;
  choices.reset(4, 2);
  const index_t experts[] = {1, 0, 0, 2, 1, 0, 0, 1};
  for (index_t pair = 0; pair < 8; ++pair) {
    choices.expert[pair] = experts[pair];
    choices.asked[pair] = 1;
  }
  choice_table<double> by_rank = choices;
  const capacity_limit two = capacity_limit::fixed(2);
  position_capacity(two, position_order::by_token).serve(choices, {0, 4}, 3, routing_context<double>{});
  const int kept[] = {1, 1, 1, 1, 1, 0, 0, 0}, slots[] = {0, 0, 1, 0, 1, 2, 3, 2};
  for (index_t pair = 0; pair < 8; ++pair) {
    CHECK(choices.kept[pair] == kept[pair]);
    CHECK(choices.slot[pair] == slots[pair]);
  }
  position_capacity(two).serve(by_rank, {0, 4}, 3, routing_context<double>{});
  CHECK(by_rank.kept[1] == 0);
  CHECK(by_rank.kept[6] == 1);
}

TEST_CASE("position: what every capacity policy promises", "[capacity]") {
  test::check_served([](index_t C) { return position_capacity(capacity_limit::fixed(C)); }, 23, 5, 3, 7);
  test::check_served([](index_t C) { return position_capacity(capacity_limit::fixed(C)); }, 1, 1, 1, 8);
  test::check_served([](index_t C) { return position_capacity(capacity_limit::fixed(C), position_order::by_token); },
                     23, 5, 3, 7);
}

TEST_CASE("position: experts with limits of their own", "[capacity]") {
  choice_table<double> choices = test::drawn_choices(60, 4, 2, 9);
  const capacity_limit limit = capacity_limit::gshard(0.5).shared_by({1, 2, 3, 4});  // 60 choices: 6, 12, 18, 24
  position_capacity(limit).serve(choices, {0, 60}, 4, routing_context<double>{});
  const auto kept = test::loads(choices, 4, true);
  const auto wanted = test::loads(choices, 4, false);
  bool limited = false;
  for (index_t e = 0; e < 4; ++e) {
    CHECK(kept[std::size_t(e)] == std::min(wanted[std::size_t(e)], 6 * (e + 1)));
    limited |= wanted[std::size_t(e)] > 6 * (e + 1);
  }
  CHECK(limited);
}

TEST_CASE("position: Tutel's dropless and bounded forms read the largest load of the group", "[capacity]") {
  choice_table<double> choices = test::drawn_choices(30, 5, 2, 11);
  position_capacity(capacity_limit::tutel(0)).serve(choices, {0, 30}, 5, routing_context<double>{});
  for (const index_t pair : choices.order) CHECK(choices.kept[pair] == 1);
  choice_table<double> bounded = test::drawn_choices(30, 5, 2, 11);
  position_capacity(capacity_limit::tutel(-1)).serve(bounded, {0, 30}, 5, routing_context<double>{});  // at most 2 * 6
  const auto wanted = test::loads(bounded, 5, false);
  REQUIRE(*std::max_element(wanted.begin(), wanted.end()) > 12);
  for (index_t e = 0; e < 5; ++e)
    CHECK(test::loads(bounded, 5, true)[std::size_t(e)] == std::min<index_t>(wanted[std::size_t(e)], 12));
}

TEST_CASE("position: T counts the tokens that are no padding", "[capacity]") {
  choice_table<double> choices = test::drawn_choices(20, 4, 1, 12, false);
  std::vector<std::uint8_t> mask(20, 0);
  for (const std::size_t t : {2u, 3u, 7u, 11u, 12u, 13u, 17u, 19u}) mask[t] = 1;
  for (index_t t = 0; t < 20; ++t) choices.asked[t] = mask[std::size_t(t)];
  for (index_t t = 0; t < 20; ++t) choices.expert[t] = 1;
  routing_context<double> context;
  context.token_mask = mask;
  position_capacity(capacity_limit::switch_transformer(1)).serve(choices, {0, 20}, 4, context);  // 8 tokens: C = 2
  CHECK(test::kept_pairs(choices) == std::vector<std::pair<index_t, index_t>>{{2, 1}, {3, 1}});
}

TEST_CASE("position: groups in which nothing is asked for need no capacity", "[capacity]") {
  choice_table<double> choices = test::drawn_choices(8, 4, 1, 13, false);
  const position_capacity policy(capacity_limit::vmoe(0.01, capacity_rounding::half_to_even, 0));
  CHECK_NOTHROW(policy.serve(choices, {3, 3}, 4, routing_context<double>{}));
  choices.asked.fill(0);
  CHECK_NOTHROW(policy.serve(choices, {0, 8}, 4, routing_context<double>{}));
  CHECK(choices.order.empty());
  choices.asked.fill(1);
  CHECK_THROWS_WITH(policy.serve(choices, {0, 8}, 4, routing_context<double>{}), test::contains("T = 8"));
}
