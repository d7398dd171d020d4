#include <sluice/core/soft_plan.hpp>

#include "../support.hpp"

using namespace sluice;

TEST_CASE("soft_plan: shapes and the rows of slots, one group", "[core][plan]") {
  soft_plan<float> p;
  p.reset(5, 3, 2, {});
  CHECK(p.tokens() == 5);
  CHECK(p.experts() == 3);
  CHECK(p.slots_per_expert() == 2);
  CHECK(p.slot_count() == 6);
  CHECK(p.rows() == 6);
  CHECK(p.dispatch().rows() == 5);
  CHECK(p.combine().cols() == 6);
  for (index_t s = 0; s < 6; ++s) CHECK(p.row(0, s) == s);
  for (index_t e = 0; e < 3; ++e) CHECK((p.by_expert().of(e).begin == 2 * e && p.by_expert().of(e).end == 2 * e + 2));
}

TEST_CASE("soft_plan: groups have rows of their own, grouped by expert", "[core][plan]") {
  const std::vector<index_t> borders{0, 2, 2, 5};
  routing_context<float> context;
  context.groups = borders;
  soft_plan<float> p;
  p.reset(5, 2, 2, context);
  CHECK(p.groups().size() == 3);
  CHECK(p.rows() == 12);
  CHECK(p.group_of(1) == 0);
  CHECK(p.group_of(2) == 2);
  CHECK(p.groups()[1].size() == 0);
  std::vector<int> hit(12, 0);
  for (index_t g = 0; g < 3; ++g)
    for (index_t s = 0; s < 4; ++s) {
      const index_t row = p.row(g, s);
      const index_t expert = s / 2;
      const row_range own = p.by_expert().of(expert);
      CHECK((row >= own.begin && row < own.end));
      ++hit[static_cast<std::size_t>(row)];
    }
  CHECK(hit == std::vector<int>(12, 1));
}

TEST_CASE("soft_plan: a value that can be copied, altered and reset", "[core][plan]") {
  soft_plan<double> p;
  p.reset(2, 1, 1, {});
  p.dispatch()(0, 0) = 0.25;
  p.combine()(1, 0) = 0.5;
  soft_plan<double> copy = p;
  copy.combine()(1, 0) = 9;
  CHECK(p.combine()(1, 0) == 0.5);
  CHECK(copy.dispatch()(0, 0) == 0.25);
  p.mark_invalid(1);
  CHECK(p.invalid_tokens().size() == 1);
  p.reset(0, 4, 3, {});
  CHECK(p.invalid_tokens().empty());
  CHECK(p.tokens() == 0);
  CHECK(p.rows() == 12);
}

TEST_CASE("soft_plan: sizes that make no sense are refused", "[core][plan]") {
  soft_plan<double> p;
  CHECK_THROWS_WITH(p.reset(2, 0, 1, {}),
                    "sluice: a soft plan needs T >= 0, E >= 1 and slots >= 1, not T = 2, E = 0, slots = 1");
  CHECK_THROWS_AS(p.reset(-1, 1, 1, {}), std::invalid_argument);
  CHECK_THROWS_AS(p.reset(2, 1, 0, {}), std::invalid_argument);
}
