#include <sluice/router/tokens_choose/position_share.hpp>

#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

using namespace sluice;
using test::copy_gate;

namespace {

const test::table_router position_share_in_table("position_share_router", [] {
  return test::made(position_share_router<double>{6, 4, {.top_k = 2}}, {.k = 2});
});

using share_router = position_share_router<double, copy_gate<double>>;

}  // namespace

TEST_CASE("position_share: weights of an expert add up at every place", "[router][position_share]") {
  const share_router router(copy_gate<double>(3, 3), {.top_k = 1, .capacity_factor = 1.5, .epsilon = 1e-30});
  // Three sequences of 2, 1 and 2 tokens: at place 0 expert 0 has two tokens and expert 2 one; at place 1 expert 1 has both.
  matrix<double> x(5, 3);
  x << 2, 0, 0,  //
      0, 1, 0,   //
      1, 0, 0,   //
      0, 0, 3,   //
      0, 3, 0;
  const std::vector<index_t> sequences{0, 2, 3, 5};
  routing_context<double> context;
  context.sequences = sequences;
  const auto w = test::route(router, x, context).plan.dense_weights();
  const auto p = [](double l) { return std::exp(l) / (std::exp(l) + 2); };
  CHECK(w(0, 0) == Approx(4 * p(2) / (p(2) + p(1))).epsilon(1e-13));
  CHECK(w(2, 0) == Approx(4 * p(1) / (p(2) + p(1))).epsilon(1e-13));
  CHECK(w(3, 2) == Approx(4).epsilon(1e-13));
  CHECK(w(1, 1) == Approx(4 * p(1) / (p(1) + p(3))).epsilon(1e-13));
  CHECK(w(4, 1) == Approx(4 * p(3) / (p(1) + p(3))).epsilon(1e-13));
  CHECK(w.sum() == Approx(12).epsilon(1e-13));  // trunc(1.5 * 3) for each of the three pairs of place and expert
}

TEST_CASE("position_share: padding has no share, and without sequences all tokens stand at one place",
          "[router][position_share]") {
  const share_router router(copy_gate<double>(3, 3), {.top_k = 2, .epsilon = 1e-30});
  const matrix<double> x = test::random_matrix<double>(6, 3, 4);
  const std::vector<std::uint8_t> mask{1, 0, 1, 1, 1, 1};
  routing_context<double> context;
  context.token_mask = mask;
  const auto plan = test::route(router, x, context).plan;
  CHECK(plan.rows() == 10);
  const matrix<double> w = plan.dense_weights();
  for (index_t e = 0; e < 3; ++e)
    if (plan.load(e) > 0) CHECK(w.col(e).sum() == Approx(6).epsilon(1e-13));
}

TEST_CASE("position_share: factors that leave nothing are refused", "[router][position_share]") {
  CHECK_THROWS_WITH((position_share_router<double>{4, 3, {.capacity_factor = -1}}), Catch::Matchers::Contains("above 0"));
  const share_router router(copy_gate<double>(3, 3), {.capacity_factor = 0.3});
  const matrix<double> x = test::random_matrix<double>(3, 3, 4);
  CHECK_THROWS_WITH(test::route(router, x), Catch::Matchers::Contains("0.3 leaves nothing of 3 sequences"));
}

TEST_CASE("position_share: every promise of a router", "[router][position_share][conformance]") {
  position_share_router<double> router{6, 4, {.top_k = 2}};
  initialize(router, 3);
  const auto report = test::conformance(router);
  INFO(report.describe());
  CHECK(report.passed());
  const std::vector<index_t> sequences{0, 5, 9, 9, 14};
  routing_context<double> context = test::training();
  context.sequences = sequences;
  const auto gradients =
      test::check_router_gradients(router, 14, 5, context);
  INFO(gradients.describe());
  CHECK(gradients.largest_error < 1e-6);
}
