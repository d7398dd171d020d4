#include <sluice/router/assigned/sparse_transport.hpp>

#include <sluice/capacity/position.hpp>
#include <sluice/train/initialize.hpp>

#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

using namespace sluice;
using test::copy_gate;

namespace {

const test::table_router sparse_experts_in_table("sparse_expert_choice_router", [] {
  return test::made(sparse_expert_choice_router<double>{6, 4}, {.training_capacity = 12});
});
const test::table_router sparse_tokens_in_table("sparse_token_choice_router", [] {
  sparse_token_choice_router<double> router{6, 4, {.top_k = 2}};
  initialize(router, 7);
  router.gate().weight().map() *= 8;  // so peaked that some tokens have one entry only
  return test::made(router, {.k = 2, .seed = 0});
});

using sparse_experts = sparse_expert_choice_router<double, copy_gate<double>>;
using sparse_tokens = sparse_token_choice_router<double, copy_gate<double>>;

/// The nearest point of the simplex that has at most `most` entries: by bisection for what is taken off.
std::vector<double> naive_projection(const std::vector<double>& v, index_t most) {
  std::vector<double> largest = v;
  std::sort(largest.begin(), largest.end(), std::greater<>());
  largest.resize(as_size(most));
  double low = largest.front() - 1, high = largest.front();
  for (int i = 0; i < 200; ++i) {
    const double middle = (low + high) / 2;
    double sum = 0;
    for (const double x : largest) sum += std::max(x - middle, 0.0);
    (sum > 1 ? low : high) = middle;
  }
  std::vector<double> q(v.size(), 0);
  for (std::size_t i = 0; i < v.size(); ++i)
    if (v[i] >= largest.back()) q[i] = std::max(v[i] - low, 0.0);
  return q;
}

/// P [n,E] after some steps from zero, of S = softmax of the logits; by column or by row.
matrix<double> naive_transport(const matrix<double>& logits, index_t most, bool by_column, int steps) {
  const index_t n = logits.rows(), experts = logits.cols();
  matrix<double> s(n, experts);
  for (index_t t = 0; t < n; ++t) {
    const auto p = test::naive_softmax(&logits(t, 0), experts);
    for (index_t e = 0; e < experts; ++e) s(t, e) = p[as_size(e)];
  }
  const double share = double(n) / double(experts);
  if (!by_column) s.transposeInPlace();  // now the constrained side is the columns
  const double mass = by_column ? share : 1, target = by_column ? 1 : share;
  matrix<double> p = matrix<double>::Zero(s.rows(), s.cols());
  std::vector<double> a(as_size(s.rows()), 0), mean = a, square = a;
  for (int step = 1;; ++step) {
    for (index_t c = 0; c < s.cols(); ++c) {
      std::vector<double> v;
      for (index_t r = 0; r < s.rows(); ++r) v.push_back((a[as_size(r)] + s(r, c)) / mass);
      const auto q = naive_projection(v, most);
      for (index_t r = 0; r < s.rows(); ++r) p(r, c) = mass * q[as_size(r)];
    }
    if (step > steps) return by_column ? p : matrix<double>(p.transpose());
    for (index_t r = 0; r < s.rows(); ++r) {
      const std::size_t i = as_size(r);
      const double g = p.row(r).sum() - target;
      mean[i] = 0.9 * mean[i] + 0.1 * g;
      square[i] = 0.999 * square[i] + 0.001 * g * g;
      a[i] -= 0.01 * mean[i] / (1 - std::pow(0.9, step)) / (std::sqrt(square[i] / (1 - std::pow(0.999, step))) + 1e-8);
    }
  }
}

}  // namespace

TEST_CASE("sparse_transport: couplings against the definition, with few entries and with all", "[router][sparse_transport]") {
  const matrix<double> logits = 2 * test::random_matrix<double>(12, 4, 31);
  for (const double cf : {1.0, 2.0, 4.0}) {
    CAPTURE(cf);
    sparse_experts::options o;
    o.capacity = capacity_limit::vmoe(cf, capacity_rounding::up, 0);
    const auto result = test::route(sparse_experts(copy_gate<double>(4, 4), o), logits);
    const matrix<double> p = result.tape.compared.coupling.map();
    CHECK(test::largest_difference(p, naive_transport(logits, static_cast<index_t>(3 * cf), true, 20)) <= 1e-9);
    CHECK(((p.array() > 0).colwise().count().maxCoeff() <= static_cast<index_t>(3 * cf)));
    CHECK((p.colwise().sum().array() - 3).abs().maxCoeff() <= test::bound<double>(12, 3.0));
  }
  for (const index_t k : {1, 2, 4}) {
    CAPTURE(k);
    const auto result = test::route(sparse_tokens(copy_gate<double>(4, 4), {.top_k = k}), logits);
    const matrix<double> p = result.tape.rule.coupling.map();
    CHECK(test::largest_difference(p, naive_transport(logits, k, false, 20)) <= 1e-9);
    CHECK((p.array() > 0).rowwise().count().maxCoeff() <= k);
    CHECK((p.rowwise().sum().array() - 1).abs().maxCoeff() <= test::bound<double>(4));
  }
}

TEST_CASE("sparse_transport: with many steps tokens, too, get what is theirs", "[router][sparse_transport]") {
  sparse_experts::options o;
  o.capacity = capacity_limit::vmoe(4.0, capacity_rounding::up, 0);  // all entries: the problem is convex
  o.coupling.steps = 4000;
  o.coupling.learning_rate = 1e-3;
  const matrix<double> logits = 2 * test::random_matrix<double>(12, 4, 31);
  const auto result = test::route(sparse_experts(copy_gate<double>(4, 4), o), logits);
  const matrix<double> p = result.tape.compared.coupling.map();
  CHECK((p.rowwise().sum().array() - 1).abs().maxCoeff() <= 1e-2);
}

TEST_CASE("sparse_transport: experts take as many tokens as they may, tokens no entry that is 0",
          "[router][sparse_transport]") {
  matrix<double> logits = test::random_matrix<double>(9, 3, 5);
  logits.col(1).array() += 3;
  const auto taken = test::route(sparse_experts(copy_gate<double>(3, 3)), logits);
  for (index_t e = 0; e < 3; ++e) CHECK(taken.plan.load(e) == 3);
  const auto check_weights = [&](const sparse_plan<double>& plan) {
    for (index_t i = 0; i < plan.size(); ++i) {
      const auto p = test::naive_softmax(&logits(plan.token(i), 0), 3);
      CHECK(std::abs(plan.weight(i) - p[as_size(plan.expert(i))]) <= test::bound<double>(3));
    }
  };
  check_weights(taken.plan);
  matrix<double> peaked = logits;
  peaked.row(4) << 2000, 0, 0;  // one entry takes all
  const sparse_tokens still(copy_gate<double>(3, 3), {.top_k = 3, .coupling = {.learning_rate = 0}});  // P of S as it is
  const auto chosen = test::route(still, peaked);
  CHECK(chosen.plan.of_token(4).size() == 1);
  for (index_t i = 0; i < chosen.plan.size(); ++i)
    CHECK(chosen.tape.rule.coupling(chosen.plan.token(i), chosen.plan.expert(i)) > 0);
  check_weights(test::route(sparse_tokens(copy_gate<double>(3, 3), {.top_k = 2}), logits).plan);
}

TEST_CASE("sparse_transport: capacity drops, padding and NaN take no part", "[router][sparse_transport][nan]") {
  matrix<double> logits = test::random_matrix<double>(8, 3, 6);
  logits(2, 0) = quiet_nan<double>();
  const std::vector<std::uint8_t> mask{1, 1, 1, 1, 1, 0, 1, 1};
  routing_context<double> context;
  context.token_mask = mask;
  using limited = sparse_token_choice_router<double, copy_gate<double>, position_capacity>;
  const limited router(copy_gate<double>(3, 3), {.top_k = 2}, position_capacity(capacity_limit::fixed(3)));
  const auto result = test::route(router, logits, context);
  CHECK(result.plan.of_token(2).empty());
  CHECK(result.plan.of_token(5).empty());
  for (index_t e = 0; e < 3; ++e) CHECK(result.plan.load(e) <= 3);
  matrix<double> others(6, 3);
  others << logits.topRows(2), logits.middleRows(3, 2), logits.bottomRows(2);
  const matrix<double> p = result.tape.rule.coupling.map();
  matrix<double> own(6, 3);
  own << p.topRows(2), p.middleRows(3, 2), p.bottomRows(2);
  CHECK(test::largest_difference(own, naive_transport(others, 2, false, 20)) <= 1e-9);
  CHECK(test::route(router, matrix<double>(0, 3)).plan.size() == 0);
  CHECK(test::route(sparse_experts(copy_gate<double>(3, 3)), matrix<double>(0, 3)).plan.size() == 0);
  for (const sparse_coupling_options& o : {sparse_coupling_options{.gamma = 0}, {.steps = 0}, {.learning_rate = -1}})
    CHECK_THROWS_WITH(sparse_row_coupling<double>(o), test::contains("gamma > 0, steps >= 1"));
}

TEST_CASE("sparse_transport: gradients, and every promise", "[router][sparse_transport][gradient]") {
  const auto check = [](auto router) {
    const auto gradients = test::check_router_gradients(router, 9, 95, test::training());
    INFO(gradients.describe());
    CHECK(gradients.largest_error < 1e-6);
    initialize(router, 3);
    const auto report = test::conformance(router);
    INFO(report.describe());
    CHECK(report.passed());
  };
  check(sparse_expert_choice_router<double>{4, 3});
  check(sparse_token_choice_router<double>{4, 3, {.top_k = 2}});
}
