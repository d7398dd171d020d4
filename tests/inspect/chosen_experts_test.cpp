#include <sluice/inspect/chosen_experts.hpp>

#include "../support.hpp"

using namespace sluice;

TEST_CASE("chosen_experts: by position of their sequences", "[inspect]") {
  sparse_plan<float> plan;
  plan.reset(5, 3);  // sequences of 2 and 3 tokens
  plan.add(0, 2, 0.5f);
  plan.add(0, 1, 0.25f, 1);
  plan.add(2, 2, 1.0f);
  plan.add(3, 0, 0.75f);
  plan.add(4, 0, 0.5f);
  plan.finish();
  const std::vector<index_t> borders{0, 2, 5};
  routing_context<float> context;
  context.sequences = borders;
  chosen_experts seen(3);
  seen.add(plan, context);
  matrix<double> chosen(3, 3), weight(3, 3);
  chosen << 0, 1, 2, 1, 0, 0, 1, 0, 0;
  weight << 0, 0.25, 1.5, 0.75, 0, 0, 0.5, 0, 0;
  CHECK(seen.chosen() == chosen);
  CHECK(seen.weight() == weight);
  CHECK(seen.tokens() == std::vector<index_t>{2, 1, 1});  // token 1 goes nowhere

  seen.add(plan);  // as one sequence
  CHECK(seen.positions() == 5);
  CHECK(seen.chosen()(0, 2) == 3);
  CHECK(seen.chosen()(4, 0) == 1);
  CHECK(seen.weight().rowwise().sum()(2) == 1.5);
  CHECK(seen.tokens() == std::vector<index_t>{3, 1, 2, 1, 1});
}

TEST_CASE("chosen_experts: nothing, and what does not fit", "[inspect]") {
  chosen_experts seen(2);
  sparse_plan<double> plan;
  plan.reset(0, 2);
  plan.finish();
  seen.add(plan);
  CHECK(seen.positions() == 0);
  plan.reset(1, 3);
  plan.finish();
  CHECK_THROWS_WITH(seen.add(plan), Catch::Contains("E = 2 experts, the plan has 3"));
  CHECK_THROWS_AS(chosen_experts(0), std::invalid_argument);
  plan.reset(1, 2);
  plan.finish();
  const std::vector<index_t> borders{0, 2};
  routing_context<double> context;
  context.sequences = borders;
  CHECK_THROWS_AS(seen.add(plan, context), std::invalid_argument);
  CHECK(seen.positions() == 0);
}
