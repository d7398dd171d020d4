#include <sluice/router/experts_choose/token_cap.hpp>

#include <sluice/router/experts_choose/expert_choice.hpp>

#include <bit>

#include "router/token_choice_support.hpp"

using namespace sluice;
using test::copy_gate;

namespace {

using given_capped = expert_choice_router<double, copy_gate<double>>;

given_capped capped_choice(index_t experts, index_t capacity, token_cap cap) {
  return given_capped(copy_gate<double>(experts, experts), {.capacity = capacity_limit::fixed(capacity), .cap = cap});
}

index_t most_experts(const sparse_plan<double>& plan) {
  std::size_t most = 0;
  for (index_t t = 0; t < plan.tokens(); ++t) most = std::max(most, plan.of_token(t).size());
  return index_t(most);
}

double total_score(const sparse_plan<double>& plan) {
  double sum = 0;
  for (const double w : plan.weights()) sum += w;
  return sum;
}

/// The largest sum of scores when each expert takes `capacity` tokens and a token has at most `most` experts: all sets of
/// tokens of all experts, one expert after the other.
double best_total(const matrix<double>& p, index_t capacity, index_t most, index_t expert, std::vector<index_t>& load) {
  const index_t T = p.rows();
  if (expert == p.cols()) return 0;
  double best = -1;
  for (unsigned set = 0; set < 1U << T; ++set) {
    if (std::popcount(set) != int(capacity)) continue;
    double sum = 0;
    bool fits = true;
    for (index_t t = 0; t < T && fits; ++t)
      if ((set >> t & 1U) != 0) sum += p(t, expert), fits = load[std::size_t(t)] < most;
    if (!fits) continue;
    for (index_t t = 0; t < T; ++t) load[std::size_t(t)] += set >> t & 1U;
    const double rest = best_total(p, capacity, most, expert + 1, load);
    for (index_t t = 0; t < T; ++t) load[std::size_t(t)] -= set >> t & 1U;
    if (rest >= 0) best = std::max(best, sum + rest);
  }
  return best;
}

}  // namespace

TEST_CASE("token_cap: fixture F with at most two experts a token", "[router][expert_choice][token_cap]") {
  // Without a cap token 1 has three experts. Cheapest is that expert 1 takes token 0 (0.236883) in its place (0.276004):
  // token 2, by which expert 3 would lose less, has two experts already.
  const auto plan = test::route(capped_choice(4, 2, {.most = 2}), test::fixture_f<double>()).plan;
  CHECK(plan.size() == 8);
  CHECK(most_experts(plan) == 2);
  std::vector<index_t> load(4, 0);
  matrix<double> p(4, 4);
  for (index_t t = 0; t < 4; ++t) {
    const auto row = test::naive_softmax(test::fixture_f<double>().row(t).data(), 4);
    for (index_t e = 0; e < 4; ++e) p(t, e) = row[std::size_t(e)];
  }
  CHECK(std::abs(total_score(plan) - best_total(p, 2, 2, 0, load)) <= test::bound<double>(8));
  CHECK(plan.weight(0) == plan.dense_weights()(plan.token(0), 0));  // weights stay p
}

TEST_CASE("token_cap: comes close to the best of all plans, and never breaks the cap",
          "[router][expert_choice][token_cap]") {
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    CAPTURE(seed);
    matrix<double> logits = test::random_matrix<double>(7, 3, seed);
    logits.row(2).array() += 0.1;
    logits.col(0).array() += 2;  // one expert that many tokens want
    const index_t most = seed % 2 == 0 ? 1 : 2, capacity = most == 1 ? 2 : 4;
    const auto r = test::route(capped_choice(3, capacity, {.most = most}), logits);
    std::vector<index_t> load(7, 0);
    matrix<double> p(7, 3);
    for (index_t t = 0; t < 7; ++t)
      for (index_t e = 0; e < 3; ++e) p(t, e) = r.tape.scores(t, e);
    const double best = best_total(p, capacity, most, 0, load);
    CHECK(most_experts(r.plan) <= most);
    CHECK(r.plan.size() == 3 * capacity);
    CHECK(total_score(r.plan) <= best + test::bound<double>(12));
    CHECK(total_score(r.plan) >= 0.99 * best);
  }
}

TEST_CASE("token_cap: a cap that nobody reaches changes nothing", "[router][expert_choice][token_cap]") {
  const matrix<double> logits = test::random_matrix<double>(20, 5, 31);
  const auto plain = test::route(capped_choice(5, 6, {}), logits).plan;
  const index_t most = most_experts(plain);
  REQUIRE(most < 5);
  CHECK(test::plan_bits(test::route(capped_choice(5, 6, {.most = most}), logits).plan) == test::plan_bits(plain));
  CHECK(test::plan_bits(test::route(capped_choice(5, 6, {.most = 5}), logits).plan) == test::plan_bits(plain));
}

TEST_CASE("token_cap: where experts ask for more than the tokens may give, slots stay empty",
          "[router][expert_choice][token_cap]") {
  const auto plan = test::route(capped_choice(3, 3, {.most = 1}), test::random_matrix<double>(4, 3, 32)).plan;
  CHECK(plan.size() == 4);
  CHECK(most_experts(plan) == 1);
  // One token, everything to one expert, equal scores.
  CHECK(test::route(capped_choice(3, 1, {.most = 1}), test::random_matrix<double>(1, 3, 33)).plan.size() == 1);
  CHECK(most_experts(test::route(capped_choice(3, 2, {.most = 2}), matrix<double>::Zero(5, 3)).plan) == 2);
  CHECK(test::route(capped_choice(3, 2, {.most = 2}), matrix<double>(0, 3)).plan.size() == 0);
}

TEST_CASE("token_cap: groups, padding and NaN", "[router][expert_choice][token_cap]") {
  matrix<double> logits = test::random_matrix<double>(12, 3, 34);
  logits(7, 1) = quiet_nan<double>();
  const std::vector<index_t> borders{0, 5, 12};
  const std::vector<std::uint8_t> mask{1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  routing_context<double> context;
  context.groups = borders;
  context.token_mask = mask;
  const auto plan = test::route(capped_choice(3, 3, {.most = 2}), logits, context).plan;
  CHECK(most_experts(plan) == 2);
  CHECK(plan.of_token(2).empty());
  CHECK(plan.of_token(7).empty());
}

TEST_CASE("token_cap: keeps every promise", "[router][expert_choice][token_cap]") {
  expert_choice_router<double> router(16, 8, {.cap = {.most = 2, .lambda = 0.01, .iterations = 20}});
  initialize(router, 3);
  const conformance_report report = test::conformance(router);
  INFO(report.describe());
  CHECK(report.passed());
}

TEST_CASE("token_cap: refuses what makes no sense", "[router][expert_choice][token_cap]") {
  CHECK_THROWS_WITH(capped_choice(3, 1, {.most = -1}), test::contains("-1"));
  CHECK_THROWS_WITH(capped_choice(3, 1, {.most = 1, .lambda = 0}), test::contains("and 0"));
  CHECK_THROWS_WITH(capped_choice(3, 1, {.most = 1, .iterations = -2}), test::contains("-2"));
}
