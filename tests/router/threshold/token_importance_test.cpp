#include <sluice/router/threshold/token_importance.hpp>

#include "router/token_choice_support.hpp"

using namespace sluice;

TEST_CASE("token_importance: the most important tokens are marked", "[router][token_importance]") {
  const std::vector<double> importance{1, 5, 3, 5, 2};
  std::vector<std::uint8_t> flags(5, 0);
  mark_most_important<double>(importance, 0.39, flags);  // floor(1.95)
  CHECK(flags == std::vector<std::uint8_t>{0, 1, 0, 0, 0});
  mark_most_important<double>(importance, 0.6, flags);
  CHECK(flags == std::vector<std::uint8_t>{0, 1, 1, 1, 0});
  CHECK_THROWS_WITH(mark_most_important<double>(importance, 1.1, flags), test::contains("1.1"));
  flags.pop_back();
  CHECK_THROWS_WITH(mark_most_important<double>(importance, 0.1, flags), test::contains("5") && test::contains("4"));
}

TEST_CASE("token_importance: the attention that a token receives, or pays", "[router][token_importance]") {
  matrix<double> x(3, 2), attention(3, 3);
  x << 1, -1, 0, 3, 2, 2;
  attention << 1, 0, 0, 0.25, 0.75, 0, 0.5, 0.25, 0.25;
  std::vector<double> importance(3);
  token_importance<double>(x, attention, importance);
  CHECK(importance == std::vector<double>{2 * 1.75 / 3, 3 * 1.0 / 2, 4 * 0.25});
  token_importance<double>(x, attention, importance, attention_share::paid);
  CHECK(importance == std::vector<double>{2.0 / 3, 3.0 / 2, 4.0});
  CHECK_THROWS_WITH(token_importance<double>(x, attention.topRows(2), importance), test::contains("[2, 3]"));
  importance.clear();
  token_importance<double>(matrix<double>(0, 2), matrix<double>(0, 0), importance);
}

TEST_CASE("token_importance: the least see no expert, the most keep all, and who is both is kept",
          "[router][token_importance]") {
  const std::vector<double> importance{3, 1, quiet_nan<double>(), 5, 2};
  std::vector<std::uint8_t> sees(5, 7), keeps(5, 7);
  prune_tokens<double>(importance, {.least = 0.4, .most = 0.2}, sees, keeps);
  CHECK(sees == std::vector<std::uint8_t>{1, 0, 0, 1, 1});
  CHECK(keeps == std::vector<std::uint8_t>{0, 0, 0, 1, 0});
  prune_tokens<double>(importance, {.least = 1, .most = 0.4}, sees, keeps);
  CHECK(sees == std::vector<std::uint8_t>{1, 0, 0, 1, 0});
  prune_tokens<double>(std::span(importance).first(1), {.least = 0.5, .most = 0.5}, std::span(sees).first(1),
                       std::span(keeps).first(1));
  CHECK(sees[0] == 1);
  CHECK(keeps[0] == 0);
  CHECK_THROWS_AS(prune_tokens<double>(importance, {.least = -1}, sees, keeps), std::invalid_argument);
  sees.pop_back();
  CHECK_THROWS_AS(prune_tokens<double>(importance, {}, sees, keeps), std::invalid_argument);
}
