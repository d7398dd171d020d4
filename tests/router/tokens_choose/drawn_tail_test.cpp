#include <sluice/router/tokens_choose/drawn_tail.hpp>

#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

#include <cmath>
#include <set>

using namespace sluice;
using test::copy_gate;

namespace {

const test::table_router drawn_tail_in_table("drawn_tail_router", [] {
  return test::made(drawn_tail_router<double>{linear_gate<double>(6, 4),
                                              softmax_rule<double>({.top_k = 3, .weights = weighting::pre}), 1},
                    {.k = 3});
});

drawn_tail_router<double, softmax_rule<double>, copy_gate<double>> drawn_of_rows(index_t k, index_t drawn) {
  return {copy_gate<double>(4, 4), softmax_rule<double>({.top_k = k, .weights = weighting::pre}), drawn};
}

}  // namespace

TEST_CASE("drawn_tail: the best stay, others are drawn by what is left of the scores", "[router][drawn_tail]") {
  const index_t T = 5000;
  matrix<double> logits(T, 4);
  for (index_t t = 0; t < T; ++t) logits.row(t) << 0.0, 2.0, 1.0, -1.0;
  const auto routed = test::route(drawn_of_rows(3, 2), logits, test::training());
  double found[4][4] = {};
  for (index_t t = 0; t < T; ++t) {
    const auto own = routed.plan.of_token(t);
    REQUIRE(own.size() == 3);
    std::set<index_t> experts;
    for (const index_t i : own) experts.insert(routed.plan.expert(i));
    REQUIRE(experts.size() == 3);
    REQUIRE(experts.count(1) == 1);
    for (index_t a : {0, 2, 3})
      if (experts.count(a) == 0) found[a][a] += 1.0 / double(T);  // the one that was left out
  }
  // Two of {0, 2, 3} one after the other, by e^0, e^1, e^-1: a pair is drawn in either order.
  const double p[] = {std::exp(0.0), 0, std::exp(1.0), std::exp(-1.0)}, all = p[0] + p[2] + p[3];
  for (const auto& [out, a, b] : {std::array<index_t, 3>{0, 2, 3}, {2, 0, 3}, {3, 0, 2}}) {
    const double expected = p[a] / all * p[b] / (all - p[a]) + p[b] / all * p[a] / (all - p[b]);
    CHECK(std::abs(found[out][out] - expected) < 5 * std::sqrt(expected * (1 - expected) / double(T)));
  }
  const matrix<double> weights = routed.plan.dense_weights();
  CHECK(weights(0, 1) == Approx(std::exp(2.0) / (all + std::exp(2.0))).epsilon(1e-14));
}

TEST_CASE("drawn_tail: without training, and with k of a call", "[router][drawn_tail]") {
  const matrix<double> logits = test::fixture_f<double>();
  const top_k_router<double, dynamic, dynamic, copy_gate<double>> plain(copy_gate<double>(4, 4),
                                                                        {.top_k = 2, .weights = weighting::pre});
  CHECK(test::plan_bits(test::route(drawn_of_rows(2, 1), logits).plan) ==
        test::plan_bits(test::route(plain, logits).plan));
  routing_context<double> context = test::training();
  context.top_k = 1;  // less than are drawn: all are
  std::set<index_t> seen;
  for (std::uint64_t step = 0; step < 60; ++step) {
    context.random = random_source{5, step};
    const auto routed = test::route(drawn_of_rows(2, 2), logits, context);
    CHECK(routed.plan.size() == 4);
    seen.insert(routed.plan.expert(routed.plan.of_token(0)[0]));
  }
  CHECK(seen.size() > 2);
  CHECK_THROWS_WITH(drawn_of_rows(2, 3), test::contains("k = 2") && test::contains("3"));
  CHECK_THROWS_WITH(drawn_of_rows(2, 0), test::contains("not 0"));
}

TEST_CASE("drawn_tail: gradients and promises", "[router][drawn_tail][gradient]") {
  drawn_tail_router<double> router(linear_gate<double>(4, 5), softmax_rule<double>({.top_k = 3}), 2);
  const auto report = test::check_router_gradients(router, 8, 31, test::training());
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
  initialize(router, 5);
  const auto conformance = test::conformance(router);
  INFO(conformance.describe());
  CHECK(conformance.passed());
}
