#include <sluice/router/assigned/balanced_assignment.hpp>

#include <sluice/expert/change.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/layer/residual.hpp>

#include "router/layer_checks.hpp"
#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

#include <algorithm>
#include <limits>
#include <set>
#include <vector>

using namespace sluice;
using test::copy_gate;

namespace {

const test::table_router base_in_table("base_router", [] {
  return test::made(base_router<double>{6, 4}, {.training_capacity = 12});
});

using exact_solver = exact_assignment<double>;
using greedy_solver = greedy_assignment<double>;
template <typename Solver>
using base_over_copies = base_router<double, copy_gate<double>, Solver>;

/// What a solver makes of scores [E,N]; every expert has its share, every token its expert.
template <typename Solver>
std::vector<index_t> balanced_by(const matrix<double>& scores, typename Solver::tape& t,
                                 const assignment_call& call = {}) {
  matrix_buffer<double> copy(scores.rows(), scores.cols());
  copy.map() = scores;
  buffer<index_t> expert_of;
  Solver().assign(copy, call, t, expert_of);
  std::vector<index_t> load(static_cast<std::size_t>(scores.rows()), 0);
  for (const index_t e : expert_of) ++load.at(static_cast<std::size_t>(e));
  for (const index_t l : load) CHECK(l == scores.cols() / scores.rows());
  return {expert_of.begin(), expert_of.end()};
}
template <typename Solver>
std::vector<index_t> balanced_by(const matrix<double>& scores) {
  typename Solver::tape t;
  return balanced_by<Solver>(scores, t);
}

double balance_total(const matrix<double>& scores, const std::vector<index_t>& expert_of) {
  double sum = 0;
  for (index_t t = 0; t < scores.cols(); ++t) sum += scores(expert_of[as_size(t)], t);
  return sum;
}

/// The best of all balanced assignments.
double best_balance_total(const matrix<double>& scores) {
  std::vector<index_t> expert_of;
  for (index_t t = 0; t < scores.cols(); ++t) expert_of.push_back(t / (scores.cols() / scores.rows()));
  double best = -std::numeric_limits<double>::infinity();
  do best = std::max(best, balance_total(scores, expert_of));
  while (std::next_permutation(expert_of.begin(), expert_of.end()));
  return best;
}

}  // namespace

TEST_CASE("balanced_assignment: the exact solver finds the best, the auction comes within N steps of it",
          "[router][base]") {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    const index_t experts = seed % 3 == 0 ? 2 : seed % 3 == 1 ? 3 : 4;
    const index_t tokens = experts == 2 ? 8 : experts == 3 ? 9 : 8;
    const matrix<double> scores = test::random_matrix<double>(experts, tokens, 100 + seed);
    const double best = best_balance_total(scores);
    CHECK(std::abs(balance_total(scores, balanced_by<exact_solver>(scores)) - best) <=
          test::bound<double>(tokens, 4.0));
    const double step = std::max((scores.maxCoeff() - scores.minCoeff()) / 50, 1e-4);
    const double reached = balance_total(scores, balanced_by<auction<double>>(scores));
    CHECK(reached <= best + test::bound<double>(tokens, 4.0));
    CHECK(reached >= best - static_cast<double>(tokens) * step);
  }
}

TEST_CASE("balanced_assignment: greedily, experts take their best of what is left, in an order that is drawn",
          "[router][base]") {
  const matrix<double> scores = test::random_matrix<double>(3, 12, 8);
  std::set<std::vector<index_t>> orders;
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    const assignment_call call{.random = random_source(seed), .first_draw = 6};
    greedy_solver::tape t;
    const auto expert_of = balanced_by<greedy_solver>(scores, t, call);
    std::vector<index_t> order{0, 1, 2};
    std::sort(order.begin(), order.end(), [&](index_t a, index_t b) {
      return call.random.uniform(greedy_solver::site, 6 + a) < call.random.uniform(greedy_solver::site, 6 + b);
    });
    orders.insert(order);
    // Whoever comes later has nothing that an earlier one would rather have had.
    for (std::size_t i = 0; i < 3; ++i)
      for (std::size_t j = i + 1; j < 3; ++j)
        for (index_t own = 0; own < 12; ++own)
          for (index_t other = 0; other < 12; ++other)
            if (expert_of[as_size(own)] == order[i] && expert_of[as_size(other)] == order[j])
              CHECK(scores(order[i], own) >= scores(order[i], other));
    CHECK(balance_total(scores, expert_of) <=
          balance_total(scores, balanced_by<exact_solver>(scores)) + test::bound<double>(12, 4.0));
  }
  CHECK(orders.size() == 6);
}

TEST_CASE("balanced_assignment: a number added to all scores of a token changes nothing", "[router][base]") {
  const matrix<double> scores = test::random_matrix<double>(4, 20, 7);
  matrix<double> shifted = scores;
  for (index_t t = 0; t < 20; ++t) shifted.col(t).array() += 0.125 * static_cast<double>(t % 7);
  CHECK(balanced_by<exact_solver>(shifted) == balanced_by<exact_solver>(scores));
  CHECK(std::abs(balance_total(scores, balanced_by<auction<double>>(shifted)) -
                 balance_total(scores, balanced_by<exact_solver>(scores))) <=
        20 * (shifted.maxCoeff() - shifted.minCoeff()) / 50);
}

TEST_CASE("balanced_assignment: equal scores, crowds, one expert, no tokens", "[router][base]") {
  for (const auto& [experts, tokens] : {std::array<index_t, 2>{3, 9}, {1, 5}, {4, 4}, {5, 0}}) {
    CHECK(balanced_by<exact_solver>(matrix<double>::Constant(experts, tokens, 0.5)).size() == as_size(tokens));
    CHECK(balanced_by<auction<double>>(matrix<double>::Constant(experts, tokens, 0.5)).size() == as_size(tokens));
    CHECK(balanced_by<greedy_solver>(matrix<double>::Constant(experts, tokens, 0.5)).size() == as_size(tokens));
  }
  matrix<double> crowd = test::random_matrix<double>(3, 12, 5);
  crowd.row(1).array() += 1000;  // everybody wants expert 1
  const double best = balance_total(crowd, balanced_by<exact_solver>(crowd));
  CHECK(best - balance_total(crowd, balanced_by<auction<double>>(crowd)) <=
        12 * (crowd.maxCoeff() - crowd.minCoeff()) / 50);
}

TEST_CASE("balanced_assignment: equal bits for any threads", "[router][base]") {
  const matrix<double> scores = test::random_matrix<double>(7, 70, 9);
  const auto serial = balanced_by<auction<double>>(scores);
  for (const int threads : {2, 3}) {
    test::shuffled_threads pool(threads);
    auction<double>::tape t;
    CHECK(balanced_by<auction<double>>(scores, t, {.executor = pool}) == serial);
  }
}

TEMPLATE_TEST_CASE("base: balanced in training, the best expert at inference, weighed by the sigmoid", "[router][base]",
                   auction<double>, exact_solver, greedy_solver) {
  const base_over_copies<TestType> router(copy_gate<double>(4, 4));
  matrix<double> logits = test::random_matrix<double>(14, 4, 3);
  logits.col(2).array() += 1;
  const std::vector<std::uint8_t> mask{1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  logits(3, 0) = logits(5, 1) = quiet_nan<double>();
  logits(6, 2) = std::numeric_limits<double>::infinity();
  auto context = test::training();
  context.token_mask = mask;
  const auto check_weights = [&](const sparse_plan<double>& plan) {
    for (index_t i = 0; i < plan.size(); ++i) {
      const double l = logits(plan.token(i), plan.expert(i));
      CHECK(std::abs(plan.weight(i) - 1 / (1 + std::exp(-l))) <= test::bound<double>(1));
    }
  };
  const auto trained = test::route(router, logits, context).plan;
  CHECK(trained.size() == 12);
  for (index_t e = 0; e < 4; ++e) CHECK(trained.load(e) == 3);
  check_weights(trained);
  // 11 tokens: nobody has more than 3.
  const std::vector<std::uint8_t> fewer{1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0};
  context.token_mask = fewer;
  const auto uneven = test::route(router, logits, context).plan;
  CHECK(uneven.size() == 11);
  for (index_t e = 0; e < 4; ++e) CHECK(uneven.load(e) <= 3);

  context.training = false;
  const auto plan = test::route(router, logits, context).plan;
  CHECK(plan.size() == 11);
  check_weights(plan);
  for (index_t i = 0; i < plan.size(); ++i)
    CHECK(plan.expert(i) == test::sorted_positions(&logits(plan.token(i), 0), 4)[0]);
  context.top_k = 2;
  CHECK_THROWS_WITH(test::route(router, logits, context), test::contains("one expert") && test::contains("k = 2"));
  CHECK(test::route(router, matrix<double>(0, 4), test::training()).plan.size() == 0);
}

TEST_CASE("base: tokens are blended with what their expert makes of them", "[router][base][gradient]") {
  residual_layer block{moe_layer{base_router<double>{4, 3}, expert_bank<change_expert<ffn<double, silu>>>(
                                                                3, change_expert(ffn<double, silu>(4, 5)))}};
  initialize(block, 5);
  const matrix<double> x = test::random_matrix<double>(9, 4, 2);
  matrix<double> y(9, 4);
  decltype(block)::tape tape;
  block.forward(x, y, tape);
  const auto& plan = tape.layer.plan;
  for (index_t i = 0; i < plan.size(); ++i) {
    const index_t t = plan.token(i);
    matrix<double> made(1, 4), saved(1, block.bank().expert(0).saved_columns());
    block.bank().expert(plan.expert(i)).inner().forward(x.row(t), made, saved);
    const matrix<double> blend = plan.weight(i) * made + (1 - plan.weight(i)) * x.row(t);
    CHECK(test::largest_difference(matrix<double>(y.row(t)), blend) <= test::bound<double>(8, y.cwiseAbs().maxCoeff()));
  }
  const auto report = test::layer_gradients(block, x, test::in_training());
  INFO(report.describe());
  CHECK(report.largest_error < test::gradient_tolerance);
  CHECK_THROWS_WITH(change_expert(ffn<double>(4, 5, {.outputs = 3})),
                    "sluice: a change needs equal widths, not 4 -> 3");
}

TEST_CASE("base: keeps every promise", "[router][base]") {
  const auto check = [](auto router) {
    initialize(router, 3);
    const auto report = test::conformance(router);
    INFO(report.describe());
    CHECK(report.passed());
  };
  check(base_router<double>{4, 3});
  check(base_router<double, linear_gate<double>, exact_solver>{4, 3});
  check(base_router<double, linear_gate<double>, greedy_solver>{4, 3});
}
