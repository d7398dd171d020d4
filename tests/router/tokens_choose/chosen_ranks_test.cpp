#include <sluice/router/tokens_choose/chosen_ranks.hpp>

#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

using namespace sluice;
using test::copy_gate;

namespace {

const test::table_router chosen_ranks_in_table("chosen_ranks_router", [] {
  return test::made(
      chosen_ranks_router<double>{
          linear_gate<double>(6, 4), softmax_rule<double>({.top_k = 3, .weights = weighting::pre}), {0, 2}},
      {.k = 3});
});

chosen_ranks_router<double, softmax_rule<double>, copy_gate<double>> ranks_of_fixture(std::vector<index_t> ranks,
                                                                                      index_t k, weighting weights) {
  return {copy_gate<double>(4, 4), softmax_rule<double>({.top_k = k, .weights = weights}), std::move(ranks)};
}

}  // namespace

TEST_CASE("chosen_ranks: experts by their place in a token's order", "[router][chosen_ranks]") {
  const matrix<double> logits = test::fixture_f<double>();  // token 0: 2, 1, 0, -1; token 2: 0, 3, 1, 0.5
  const auto second = test::route(ranks_of_fixture({1}, 2, weighting::renorm), logits);
  const auto all = test::route(ranks_of_fixture({0, 1, 2, 3}, 4, weighting::pre), logits);
  const auto some = test::route(ranks_of_fixture({1, 3}, 4, weighting::renorm), logits);
  for (index_t t = 0; t < 4; ++t) {
    const auto order = test::sorted_positions(&logits(t, 0), 4);
    REQUIRE(second.plan.of_token(t).size() == 1);
    CHECK(second.plan.expert(second.plan.of_token(t)[0]) == order[1]);
    CHECK(second.plan.weight(second.plan.of_token(t)[0]) == 1);
    const double p1 = std::exp(logits(t, order[1])), p3 = std::exp(logits(t, order[3]));
    CHECK(some.plan.dense_weights()(t, order[1]) == Approx(p1 / (p1 + p3)).epsilon(1e-14));
    CHECK(some.plan.dense_weights()(t, order[0]) == 0);
  }
  CHECK(test::same_bits(all.plan.dense_weights(), matrix<double>(all.tape.scores.map())));
}

TEST_CASE("chosen_ranks: ranks that cannot be are refused with their numbers", "[router][chosen_ranks]") {
  const auto pre = weighting::pre;
  CHECK_THROWS_WITH(ranks_of_fixture({}, 2, pre), test::contains("a rank"));
  CHECK_THROWS_WITH(ranks_of_fixture({1, 1}, 4, pre), test::contains("ascend"));
  CHECK_THROWS_WITH(ranks_of_fixture({-1}, 4, pre), test::contains("-1"));
  CHECK_THROWS_WITH(ranks_of_fixture({0, 2}, 2, pre), test::contains("k = 2") && test::contains("rank 2"));
  routing_context<double> context;
  context.top_k = 1;
  CHECK_THROWS_WITH(test::route(ranks_of_fixture({1}, 2, pre), test::fixture_f<double>(), context),
                    test::contains("k = 1") && test::contains("rank 1"));
  context.top_k = 3;  // more than it needs changes nothing
  CHECK(test::route(ranks_of_fixture({1}, 2, pre), test::fixture_f<double>(), context).plan.size() == 4);
}

TEST_CASE("chosen_ranks: gradients and promises", "[router][chosen_ranks][gradient]") {
  chosen_ranks_router<double> router(linear_gate<double>(4, 5), softmax_rule<double>({.top_k = 4}), {1, 3});
  const auto report = test::check_router_gradients(router, 8, 31, test::training());
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
  initialize(router, 5);
  const auto conformance = test::conformance(router);
  INFO(conformance.describe());
  CHECK(conformance.passed());
}
