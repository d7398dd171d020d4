#include <sluice/router/tokens_choose/importance_score.hpp>

#include <sluice/expert/ffn.hpp>

#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

using namespace sluice;
using test::copy_gate;

namespace {

const test::table_router importance_score_in_table("importance_score_router", [] {
  return test::made(importance_score_router<double>{6, 4, {.capacity = capacity_limit::fixed(20)}},
                    {.k = 1, .training_capacity = 20});
});

}  // namespace

TEST_CASE("importance_score: of those who want an expert the surest are served", "[router][importance_score]") {
  const importance_score_router<double, copy_gate<double>> router(copy_gate<double>(4, 4),
                                                                  {.capacity = capacity_limit::fixed(2)});
  // Fixture F: tokens 0, 1 and 3 want expert 0, with 0.643914, 0.455054 and 0.789137.
  const auto plan = test::route(router, test::fixture_f<double>()).plan;
  REQUIRE(plan.load(0) == 2);
  CHECK(plan.token(0) == 3);
  CHECK(plan.token(1) == 0);
  CHECK(std::abs(plan.weight(0) - 0.789137) < test::printed);
  REQUIRE(plan.dropped().size() == 1);
  CHECK(plan.dropped()[0].token == 1);
}

TEST_CASE("importance_score: with one expert, channels as items are a token-mixing network",
          "[router][importance_score]") {
  const index_t patches = 6, channels = 9;
  moe_layer layer{importance_score_router<double>{patches, 1}, expert_bank<ffn<double, gelu>>{1, patches, 5}};
  initialize(layer, 3);
  const matrix<double> image = test::random_matrix<double>(patches, channels, 251);
  const matrix<double> items = image.transpose();
  matrix<double> y(channels, patches), expected(channels, patches),
      saved(channels, layer.bank().expert(0).saved_columns());
  decltype(layer)::workspace workspace;
  layer.forward(items, y, workspace);
  layer.bank().expert(0).forward(items, expected, saved);
  CHECK(test::largest_difference(y, expected) <= test::bound<double>(patches + 5, 8.0));
}

TEST_CASE("importance_score: keeps every promise", "[router][importance_score]") {
  importance_score_router<double> router(16, 8, {.top_k = 2});
  initialize(router, 3);
  const conformance_report report = test::conformance(router);
  INFO(report.describe());
  CHECK(report.passed());
}
