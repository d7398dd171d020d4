#include <sluice/router/experts_choose/expert_preferred.hpp>

#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

using namespace sluice;
using test::copy_gate;

namespace {

const test::table_router expert_preferred_in_table("expert_preferred_router", [] {
  return test::made(expert_preferred_router<double>{6, {0.25, 0.25, 0.25, 0.25}}, {.training_capacity = 12});
});

using given_preferred = expert_preferred_router<double, copy_gate<double>>;

std::vector<index_t> preferred_experts(const sparse_plan<double>& plan) {
  std::vector<index_t> experts;
  for (index_t t = 0; t < plan.tokens(); ++t)
    experts.push_back(plan.of_token(t).empty() ? no_expert : plan.expert(plan.of_token(t)[0]));
  return experts;
}

}  // namespace

TEST_CASE("expert_preferred: the worked example", "[router][expert_preferred]") {
  matrix<double> logits(4, 3);  // logarithms of probabilities
  logits << 0.5, 0.2, 0.3, 0.1, 0.2, 0.7, 0.2, 0.5, 0.3, 0.3, 0.3, 0.4;
  logits = logits.array().log();
  const auto r = test::route(given_preferred(copy_gate<double>(3, 3), {0.5, 0.25, 0.25}), logits);
  CHECK(preferred_experts(r.plan) == std::vector<index_t>{0, 2, 1, 0});
  const double weight[] = {0.5, 0.7, 0.5, 0.3};
  for (index_t t = 0; t < 4; ++t)
    CHECK(std::abs(r.plan.weight(r.plan.of_token(t)[0]) - weight[t]) <= test::bound<double>(3));
  CHECK(r.plan.dropped().empty());
  STATIC_REQUIRE_FALSE(given_preferred::causal);
}

TEST_CASE("expert_preferred: budgets are whole, and expert 0 has the rest", "[router][expert_preferred]") {
  const std::vector<double> shares = nested_shares(4, 0.3);
  const auto r =
      test::route(given_preferred(copy_gate<double>(4, 4), shares), test::random_matrix<double>(196, 4, 221));
  CHECK(r.plan.load(0) == 83);
  CHECK(r.plan.load(1) == 62);
  CHECK(r.plan.load(2) == 38);
  CHECK(r.plan.load(3) == 13);
  // What expert e took is at least as good as what was left for those after it.
  for (index_t e = 3; e > 0; --e) {
    double worst = 2, best = -1;
    for (index_t t = 0; t < 196; ++t) {
      const index_t own = r.plan.expert(r.plan.of_token(t)[0]);
      if (own == e) worst = std::min(worst, r.tape.scores(t, e));
      if (own < e) best = std::max(best, r.tape.scores(t, e));
    }
    CHECK(worst >= best);
  }
}

TEST_CASE("expert_preferred: shares of nested experts", "[router][expert_preferred]") {
  for (const double share : nested_shares(4, 15.0 / 32)) CHECK(std::abs(share - 0.25) < 1e-12);
  const auto check = [](double effective, std::array<double, 4> expected, nested_share_options o = {}) {
    const auto shares = nested_shares(4, effective, o);
    double cost = 0;
    for (std::size_t i = 0; i < 4; ++i) {
      CHECK(std::abs(shares[i] - expected[i]) < test::printed);
      cost += shares[i] / double(8 >> i);
    }
    CHECK(std::abs(cost - effective) < 1e-12);
  };
  check(0.3, {0.413539, 0.321422, 0.194175, 0.070865});
  check(0.6, {0.161207, 0.184402, 0.241285, 0.413106});
  // With the linear term as printed, which falls from expert to expert: by bisection on its multiplier elsewhere.
  check(0.25, {0.494789, 0.323435, 0.148968, 0.032809}, {.delta = 0.5});
  check(0.75, {0.084307, 0.107916, 0.190590, 0.617188}, {.delta = 0.5});
  double before = 0;
  for (double effective = 0.15; effective < 1; effective += 0.05) {
    CHECK(nested_shares(4, effective)[3] >= before);
    before = nested_shares(4, effective)[3];
  }
}

TEST_CASE("expert_preferred: equal scores go to the lower token, groups have budgets of their own",
          "[router][expert_preferred][ties]") {
  given_preferred router(copy_gate<double>(2, 2), {0.5, 0.5});
  const std::vector<index_t> borders{0, 2, 2, 7};
  routing_context<double> context;
  context.groups = borders;
  CHECK(preferred_experts(test::route(router, matrix<double>::Zero(7, 2), context).plan) ==
        std::vector<index_t>{1, 0, 1, 1, 0, 0, 0});
  router.rule().set_shares({0, 1});
  CHECK(test::route(router, matrix<double>::Zero(7, 2), context).plan.load(1) == 7);
}

TEST_CASE("expert_preferred: padding and NaN have no part in the budgets", "[router][expert_preferred]") {
  matrix<double> logits = test::random_matrix<double>(8, 2, 222);
  logits(3, 0) = quiet_nan<double>();
  const std::vector<std::uint8_t> mask{1, 0, 1, 1, 1, 1, 0, 1};
  routing_context<double> context;
  context.token_mask = mask;
  const auto plan = test::route(given_preferred(copy_gate<double>(2, 2), {0.5, 0.5}), logits, context).plan;
  CHECK(plan.size() == 5);
  CHECK(plan.load(1) == 2);  // floor(0.5 * 5)
  CHECK(plan.invalid_tokens().size() == 1);
  CHECK(test::route(given_preferred(copy_gate<double>(2, 2), {0.5, 0.5}), matrix<double>(0, 2)).plan.size() == 0);
  CHECK(test::route(given_preferred(copy_gate<double>(1, 1), {1.0}), matrix<double>::Zero(3, 1)).plan.load(0) == 3);
}

TEST_CASE("expert_preferred: gradients equal central differences", "[router][expert_preferred][gradient]") {
  const expert_preferred_router<double> router(5, {0.3, 0.3, 0.4});
  const auto report = test::check_router_gradients(router, 9, 223, test::training());
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("expert_preferred: keeps every promise", "[router][expert_preferred]") {
  expert_preferred_router<double> router(16, nested_shares(4, 0.4));
  initialize(router, 3);
  const conformance_report report = test::conformance(router);
  INFO(report.describe());
  CHECK(report.passed());
}

TEST_CASE("expert_preferred: refuses what makes no sense", "[router][expert_preferred]") {
  CHECK_THROWS_WITH(given_preferred(copy_gate<double>(2, 2), {0.5, 0.6}), test::contains("1.1"));
  CHECK_THROWS_WITH(given_preferred(copy_gate<double>(2, 2), {0.5, -0.5}), test::contains("-0.5"));
  CHECK_THROWS_WITH(given_preferred(copy_gate<double>(2, 2), {1}),
                    test::contains("1 experts") && test::contains("E = 2"));
  routing_context<double> context;
  context.top_k = 2;
  CHECK_THROWS_WITH(
      test::route(given_preferred(copy_gate<double>(2, 2), {0.5, 0.5}), matrix<double>::Zero(3, 2), context),
      test::contains("k = 2"));
  CHECK_THROWS_WITH(nested_shares(4, 0.125), test::contains("between 0.125"));
  CHECK_THROWS_WITH(nested_shares(4, 1), test::contains("at 1"));
  CHECK_THROWS_WITH(nested_shares(1, 0.5), test::contains("E = 1"));
  CHECK_THROWS_WITH(nested_shares(4, 0.5, {.beta = 0}), test::contains("beta = 0"));
  CHECK_THROWS_WITH(nested_shares(4, 0.5, {.delta = 0}), test::contains("delta = 0,"));
}
