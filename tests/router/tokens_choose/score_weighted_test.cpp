#include <sluice/router/tokens_choose/score_weighted.hpp>

#include <sluice/gate/piece_sum.hpp>
#include <sluice/train/initialize.hpp>

#include "router/layer_checks.hpp"
#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

using namespace sluice;

namespace {

const test::table_router score_weighted_in_table("score_weighted_router", [] {
  return test::made(score_weighted_router<double>(6, 4, {.top_k = 2}), {.k = 2});
});

}  // namespace

TEST_CASE("score_weighted: weights are the scores of the chosen, negative ones too", "[router][score_weighted]") {
  const score_weighted_router<double, test::copy_gate<double>> router(test::copy_gate<double>(4, 4), {.top_k = 2});
  matrix<double> x(2, 4), expected = matrix<double>::Zero(2, 4);
  x << 1, 3, 2, 0, -1, -3, -2, -1;
  expected(0, 1) = 3;
  expected(0, 2) = 2;
  expected(1, 0) = expected(1, 3) = -1;
  CHECK(test::route(router, x, test::training()).plan.dense_weights() == expected);
}

TEST_CASE("score_weighted: uniform noise chooses and weighs in training, and only there", "[router][score_weighted]") {
  using noisy = score_weighted_router<double, test::copy_gate<double>, uniform_noise<double>>;
  const noisy router(test::copy_gate<double>(3, 3), {.top_k = 1}, uniform_noise<double>(2));
  matrix<double> x(2, 3), expected = matrix<double>::Zero(2, 3);
  x << 1, 0.5, 0, 0, 0, 1;
  const std::vector<double> draws{0.1, 0.9, 0.3, 0.25, 0.75, 0.2};
  auto context = test::training();
  context.random.replay(noise_site, draws);
  expected(0, 1) = 0.5 + 1.8;
  expected(1, 1) = 1.5;
  CHECK(test::route(router, x, context).plan.dense_weights() == expected);
  expected.setZero();
  expected(0, 0) = expected(1, 2) = 1;
  CHECK(test::route(router, x, {}).plan.dense_weights() == expected);
  CHECK_THROWS_AS(uniform_noise<double>(-1), std::invalid_argument);
}

TEST_CASE("score_weighted: keeps the promises of routers", "[router][score_weighted]") {
  score_weighted_router<double> router(6, 5, {.top_k = 2});
  initialize(router, 3);
  const conformance_report report = test::conformance(router);
  INFO(report.describe());
  CHECK(report.passed());
}
