#include <sluice/router/every_expert/dense.hpp>


#include "router/any_router.hpp"
#include "router/router_table.hpp"
#include "support.hpp"

using namespace sluice;

namespace {

const test::table_router dense_in_table("dense_router", [] {
  return test::made(dense_router<double>{6, 4});
});

}  // namespace

TEST_CASE("dense_router: keeps every promise", "[router][dense]") {
  const auto report = test::conformance(dense_router<double>{6, 3});
  INFO(report.describe());
  CHECK(report.passed());
}

TEST_CASE("dense_router: every token goes to every expert with weight 1, but for padding and NaN", "[router][dense]") {
  matrix<float> x = test::random_matrix<float>(4, 5, 1);
  x(2, 4) = quiet_nan<float>();
  const std::vector<std::uint8_t> mask{1, 0, 1, 1};
  routing_context<float> context;
  context.token_mask = mask;
  const dense_router<float> router{5, 3};
  sparse_plan<float> plan;
  dense_router<float>::tape tape;
  router.route(x, context, plan, tape);
  matrix<float> expected(4, 3);
  expected << 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1;
  CHECK(test::same_bits(plan.dense_weights(), expected));
  REQUIRE(plan.invalid_tokens().size() == 1);
  CHECK(plan.invalid_tokens()[0] == 2);
  for (std::size_t rank = 0; rank < 3; ++rank) CHECK(plan.expert(plan.of_token(3)[rank]) == static_cast<index_t>(rank));

  context.top_k = 1;  // of other layers of the model
  router.route(x, context, plan, tape);
  CHECK(test::same_bits(plan.dense_weights(), expected));
  CHECK_THROWS_AS((dense_router<float>{5, 0}), std::invalid_argument);
}
