#include <sluice/capacity/dropless.hpp>

#include "capacity_support.hpp"

using namespace sluice;

TEST_CASE("dropless: everything that is asked for is kept, in token order", "[capacity]") {
  choice_table<double> choices = test::drawn_choices(25, 4, 3, 51);
  for (const token_range group : {token_range{0, 10}, token_range{10, 10}, token_range{10, 25}})
    dropless{}.serve(choices, group, 4, routing_context<double>{});
  index_t next = 0;
  for (index_t pair = 0; pair < 75; ++pair) {
    CHECK(choices.kept[pair] == choices.asked[pair]);
    if (choices.asked[pair]) CHECK(choices.order[next++] == pair);
  }
  CHECK(choices.order.size() == next);
  STATIC_REQUIRE(dropless::causal);
}
