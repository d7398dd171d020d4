#include <sluice/router/threshold/top_p.hpp>

#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

using namespace sluice;
using test::copy_gate;

namespace {

const test::table_router top_p_in_table("top_p_router", [] {
  return test::made(top_p_router<double>{linear_gate<double>(6, 4), {.threshold = 0.7}});
});
const test::table_router xmoe_in_table("xmoe_router", [] {
  const position_capacity capacity(capacity_limit::fixed(20));
  return test::made(xmoe_router<double>{linear_gate<double>(6, 4), {.threshold = 0.7}, {}, capacity},
                    {.training_capacity = 20});
});

template <typename Capacity = dropless>
using given_top_p = top_p_router<double, copy_gate<double>, no_noise<double>, Capacity>;

/// One token whose probabilities are .5, .3, .15, .05, the largest at expert 2.
matrix<double> worked_row() {
  matrix<double> logits(1, 4);
  logits << std::log(0.3), std::log(0.05), std::log(0.5), std::log(0.15);
  return logits;
}

std::vector<index_t> top_p_experts(const sparse_plan<double>& plan, index_t token) {
  std::vector<index_t> experts;
  for (const index_t i : plan.of_token(token)) experts.push_back(plan.expert(i));
  return experts;
}

/// The definition: best first, while the mass before is below the threshold.
std::vector<index_t> naive_top_p(const double* row, index_t experts, index_t most, double threshold) {
  const auto order = test::sorted_positions(row, experts);
  const auto p = test::naive_softmax(row, experts);
  std::vector<index_t> chosen{order[0]};
  double mass = p[std::size_t(order[0])];
  for (index_t j = 1; j < most && mass < threshold; ++j) {
    chosen.push_back(order[std::size_t(j)]);
    mass += p[std::size_t(order[std::size_t(j)])];
  }
  return chosen;
}

}  // namespace

TEST_CASE("top_p: the worked example", "[router][top_p]") {
  struct row {
    double threshold;
    std::size_t experts;
  };
  const auto r = GENERATE(row{-1, 1}, row{0, 1}, row{0.499, 1}, row{0.501, 2}, row{0.75, 2}, row{0.799, 2},
                          row{0.81, 3}, row{0.949, 3}, row{0.951, 4}, row{1, 4});
  CAPTURE(r.threshold);
  const auto plan = test::route(given_top_p<>(copy_gate<double>(4, 4), {.threshold = r.threshold}), worked_row()).plan;
  const std::vector<index_t> best{2, 0, 3, 1};
  CHECK(top_p_experts(plan, 0) == std::vector<index_t>(best.begin(), best.begin() + std::ptrdiff_t(r.experts)));
  const double p[] = {0.5, 0.3, 0.15, 0.05};
  for (const index_t i : plan.of_token(0)) CHECK(std::abs(plan.weight(i) - p[plan.rank(i)]) <= test::bound<double>(4));
}

TEST_CASE("top_p: equals the definition, of few experts and of many", "[router][top_p]") {
  const index_t E = GENERATE(index_t(1), index_t(5), index_t(40));
  const double threshold = GENERATE(0.3, 0.9, 0.999);
  const index_t most = GENERATE(index_t(0), index_t(3), index_t(20));
  if (most > E) return;
  CAPTURE(E, threshold, most);
  const matrix<double> logits = test::random_matrix<double>(30, E, 201);
  const given_top_p<> router(copy_gate<double>(E, E), {.threshold = threshold, .top_k = most});
  const auto plan = test::route(router, logits).plan;
  std::size_t longest = 0;
  for (index_t t = 0; t < 30; ++t) {
    const auto expected = naive_top_p(&logits(t, 0), E, most == 0 ? E : most, threshold);
    longest = std::max(longest, expected.size());
    CHECK(top_p_experts(plan, t) == expected);
  }
  if (E == 40 && threshold > 0.9) CHECK(longest == std::size_t(most == 0 ? 40 : most));  // past the first few
}

TEST_CASE("top_p: a higher threshold never takes an expert away", "[router][top_p]") {
  const matrix<double> logits = test::random_matrix<double>(40, 7, 202);
  index_t before = 0;
  for (const double threshold : {0.0, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0}) {
    const auto plan = test::route(given_top_p<>(copy_gate<double>(7, 7), {.threshold = threshold}), logits).plan;
    CHECK(plan.size() >= before);
    before = plan.size();
  }
  CHECK(before == 280);
}

TEST_CASE("top_p: a call's k is the most a token gets", "[router][top_p]") {
  routing_context<double> context;
  context.top_k = 2;
  const auto plan =
      test::route(given_top_p<>(copy_gate<double>(4, 4), {.threshold = 1}), test::fixture_f<double>(), context).plan;
  CHECK(plan.size() == 8);
  // Threshold 0 is top-1.
  const auto one = test::route(given_top_p<>(copy_gate<double>(4, 4), {.threshold = 0}), test::fixture_f<double>());
  const top_k_router<double, dynamic, dynamic, copy_gate<double>> top1(4, 4, {.top_k = 1, .weights = weighting::pre});
  CHECK(test::plan_bits(one.plan) == test::plan_bits(test::route(top1, test::fixture_f<double>()).plan));
}

TEST_CASE("top_p: equal logits go to the lower expert, infinity takes all the mass", "[router][top_p][ties]") {
  matrix<double> logits = matrix<double>::Zero(2, 4);
  logits(1, 2) = std::numeric_limits<double>::infinity();
  const auto plan = test::route(given_top_p<>(copy_gate<double>(4, 4), {.threshold = 0.6}), logits).plan;
  CHECK(top_p_experts(plan, 0) == std::vector<index_t>{0, 1, 2});
  CHECK(top_p_experts(plan, 1) == std::vector<index_t>{2});
}

TEST_CASE("top_p: an overfull expert keeps those for whom it ranks best", "[router][top_p][xmoe]") {
  // Expert 0 is everybody's: first for tokens 2 and 3, second for tokens 0 and 1.
  matrix<double> logits(4, 3);
  logits << 1, 2, -9, 1, 2, -9, 2, 1, -9, 2, 1, -9;
  const xmoe_router<double, copy_gate<double>> router(copy_gate<double>(3, 3), {.threshold = 0.9}, {},
                                                      position_capacity(capacity_limit::fixed(3)));
  const auto plan = test::route(router, logits).plan;
  CHECK(plan.load(0) == 3);
  CHECK(top_p_experts(plan, 0) == std::vector<index_t>{1, 0});  // of equal ranks the lower token
  CHECK(top_p_experts(plan, 1) == std::vector<index_t>{1});
  REQUIRE(plan.dropped().size() == 2);
  CHECK(plan.dropped()[0].token == 1);
  CHECK(plan.dropped()[0].rank == 1);
  STATIC_REQUIRE_FALSE(decltype(router)::causal);
  STATIC_REQUIRE(given_top_p<>::causal);
}

TEST_CASE("top_p: a placeholder has no limit, and the others share the capacity", "[router][top_p][xmoe]") {
  matrix<double> logits = matrix<double>::Zero(9, 3);
  logits.col(0).setConstant(3);
  logits.col(1).setConstant(2);
  logits.col(2).setConstant(-9);
  const xmoe_router<double, copy_gate<double>> router(
      copy_gate<double>(3, 3), {.threshold = 0.9}, {},
      position_capacity(capacity_limit::xmoe(0.6, 1).without_limit({0})));
  const auto plan = test::route(router, logits).plan;
  CHECK(plan.load(0) == 9);
  CHECK(plan.load(1) == 3);  // ceil(9 / 2 * 0.6)
}

TEST_CASE("top_p: gradients equal central differences", "[router][top_p][gradient]") {
  const auto weights = GENERATE(weighting::pre, weighting::post, weighting::renorm);
  index_t dropped = 0;
  const xmoe_router<double> limited(linear_gate<double>(5, 6), {.threshold = 0.8, .weights = weights}, {},
                                    position_capacity(capacity_limit::fixed(4)));
  const auto report = test::check_router_gradients(limited, 9, 203, test::training(), &dropped);
  INFO(report.describe());
  CHECK(dropped > 0);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("top_p: keeps every promise", "[router][top_p]") {
  top_p_router<double> router(16, 8, {.threshold = 0.7});
  initialize(router, 3);
  const conformance_report report = test::conformance(router);
  INFO(report.describe());
  CHECK(report.passed());
}

TEST_CASE("top_p: no token, padding, NaN", "[router][top_p]") {
  const given_top_p<> router(copy_gate<double>(4, 4));
  CHECK(test::route(router, matrix<double>(0, 4)).plan.size() == 0);
  matrix<double> logits = test::fixture_f<double>();
  logits(1, 2) = quiet_nan<double>();
  const std::vector<std::uint8_t> mask{1, 1, 0, 1};
  routing_context<double> context;
  context.token_mask = mask;
  const auto plan = test::route(router, logits, context).plan;
  CHECK(plan.of_token(1).empty());
  CHECK(plan.of_token(2).empty());
  CHECK(top_p_experts(plan, 0) == naive_top_p(&logits(0, 0), 4, 4, 0.9));
  REQUIRE(plan.invalid_tokens().size() == 1);
}

TEST_CASE("top_p: refuses what makes no sense", "[router][top_p]") {
  const copy_gate<double> gate(4, 4);
  CHECK_THROWS_WITH(given_top_p<>(gate, {.threshold = 1.5}), test::contains("1.5"));
  CHECK_THROWS_WITH(given_top_p<>(gate, {.threshold = quiet_nan<double>()}), test::contains("nan"));
  CHECK_THROWS_WITH(given_top_p<>(gate, {.top_k = 5}), test::contains("E = 4") && test::contains("not 5"));
  CHECK_THROWS_WITH(given_top_p<>(gate, {.top_k = -1}), test::contains("not -1"));
}
