#include <sluice/router/residual_weights.hpp>

#include <sluice/router/tokens_choose/top_k.hpp>

#include "router_table.hpp"
#include "token_choice_support.hpp"

using namespace sluice;
using test::copy_gate;

namespace {

const test::table_router residual_weights_in_table("residual_weights_router", [] {
  return test::made(residual_weights_router(top_k_router<double>{6, 4, {.top_k = 2}}, {.initial = 0.5}), {.k = 2});
});

using given_top_two = top_k_router<double, dynamic, dynamic, copy_gate<double>>;

residual_weights_router<given_top_two> residual_top_two(double alpha, bool per_expert = false) {
  return residual_weights_router<given_top_two>(given_top_two(4, 4, {.top_k = 2}),
                                                {.initial = alpha, .per_expert = per_expert});
}

}  // namespace

TEST_CASE("residual_weights: 1 + alpha w, on the choices of the router", "[router][residual_weights]") {
  const matrix<double> logits = test::fixture_f<double>();
  const auto inner = test::route(given_top_two(4, 4, {.top_k = 2}), logits).plan;
  for (const double alpha : {0.0, 0.5, -2.0}) {
    const auto plan = test::route(residual_top_two(alpha), logits).plan;
    REQUIRE(plan.size() == inner.size());
    for (index_t i = 0; i < plan.size(); ++i) {
      CHECK(plan.token(i) == inner.token(i));
      CHECK(plan.expert(i) == inner.expert(i));
      CHECK(plan.weight(i) == 1 + alpha * inner.weight(i));
    }
  }
  auto router = residual_top_two(0, true);
  router.alpha().data()[1] = 3;
  const auto plan = test::route(router, logits).plan;
  for (index_t i = 0; i < plan.size(); ++i)
    CHECK(plan.weight(i) == (plan.expert(i) == 1 ? 1 + 3 * inner.weight(i) : 1));
}

TEST_CASE("residual_weights: at alpha 0 only alpha learns", "[router][residual_weights]") {
  auto router = residual_top_two(0);
  ensure_gradients(router);
  const matrix<double> logits = test::fixture_f<double>();
  auto r = test::route(router, logits);
  r.tape.dseen.zero_like(r.tape.seen);
  sparse_plan_gradient<double> gradient;
  gradient.weight.assign(r.plan.size(), 2.0);
  matrix<double> dx = matrix<double>::Zero(4, 4);
  router.backward(logits, {}, r.plan, gradient, r.tape, dx);
  CHECK(dx.isZero(0));
  CHECK(std::abs(router.alpha().gradient()[0] - 8) <= test::bound<double>(8));  // twice the weights, 1 a token
}

TEST_CASE("residual_weights: gradients equal central differences", "[router][residual_weights][gradient]") {
  using inner = top_k_router<double>;
  for (const bool per_expert : {false, true}) {
    const residual_weights_router<inner> router(inner(5, 6, {.top_k = 3, .weights = weighting::pre}),
                                                {.initial = 0.7, .per_expert = per_expert});
    const auto report = test::check_router_gradients(router, 9, 231, test::training());
    INFO(report.describe());
    CHECK(report.largest_error < 1e-6);
  }
}

TEST_CASE("residual_weights: alpha begins with a number", "[router][residual_weights]") {
  using inner = top_k_router<double>;
  CHECK_THROWS_WITH((residual_weights_router<inner>(inner(5, 6), {.initial = quiet_nan<double>()})),
                    Catch::Matchers::Contains("initial alpha, not nan"));
}

TEST_CASE("residual_weights: keeps every promise", "[router][residual_weights]") {
  residual_weights_router<top_k_router<double>> router(top_k_router<double>(16, 8, {.top_k = 2}),
                                                       {.initial = 0.5, .per_expert = true});
  initialize(router, 3);
  const conformance_report report = test::conformance(router);
  INFO(report.describe());
  CHECK(report.passed());
}
