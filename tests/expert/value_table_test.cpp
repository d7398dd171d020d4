#include <sluice/expert/value_table.hpp>

#include <sluice/exec/thread_pool.hpp>
#include <sluice/kernel/dispatch.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/tucker_key.hpp>
#include <sluice/train/gradient_check.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

#include <algorithm>

using namespace sluice;

namespace {

/// Token t takes the experts (t + 5 j) mod E, j = 0 .. k - 1.
sparse_plan<float> plan_of_values(index_t tokens, index_t experts, index_t k) {
  sparse_plan<float> plan;
  plan.reset(tokens, experts, tokens * k);
  const matrix<float> w = test::random_matrix<float>(tokens, k, 61);
  for (index_t t = 0; t < tokens; ++t)
    for (index_t j = 0; j < k; ++j) plan.add(t, (t + 5 * j) % experts, w(t, j), j);
  plan.finish();
  return plan;
}

}  // namespace

TEST_CASE("value_table: pieces of rows in blocks, by the definition and for any thread count",
          "[expert][value_table]") {
  const index_t T = 40, V = 6, W = 260, B = 3, M = 2;
  value_table<float> table(4, V, W, {.blocks = B, .pieces = M});
  initialize(table, 62);
  REQUIRE(table.experts() == M * B * V);
  REQUIRE(table.outputs() == B * W);
  const auto shuffle = shuffled_pairs(B * V, random_source(7));
  auto sorted = shuffle;
  std::sort(sorted.begin(), sorted.end());
  for (index_t p = 0; p < B * V; ++p) CHECK(sorted[as_size(p)] == p);
  CHECK(shuffle != sorted);
  table.set_shuffle(shuffle);
  const auto plan = plan_of_values(T, table.experts(), 4);
  matrix<float> expected = matrix<float>::Zero(T, B * W);
  for (index_t i = 0; i < plan.size(); ++i) {
    const index_t piece = plan.expert(i) / (B * V), place = shuffle[as_size(plan.expert(i) % (B * V))];
    for (index_t c = piece * W / M; c < (piece + 1) * W / M; ++c)
      expected(plan.token(i), place / V * W + c) += plan.weight(i) * table.values().map()(place % V, c);
  }
  const matrix<float> x = test::random_matrix<float>(T, 4, 63);
  matrix<float> first;
  for (const int threads : {1, 2, 3}) {
    thread_pool pool(threads);
    value_table<float>::tape tape;
    matrix<float> y = matrix<float>::Zero(T, B * W);
    table.forward_routed(x, plan.routed(), y, tape, pool);
    CHECK(test::largest_difference(y, expected) <= test::bound<float>(4));
    if (threads == 1) first = y;
    CHECK(test::same_bits(y, first));
  }
}

TEST_CASE("value_table: a memory layer's gradients equal central differences", "[expert][value_table][gradient]") {
  moe_layer layer{tucker_key_router<double>{5, 4, {.heads = 2, .top_k = 3, .key_width = 3, .rank = 2, .cores = 2}},
                  value_table<double>{5, 4, 6, {.blocks = 4, .pieces = 2}}};
  initialize(layer, 64);
  layer.router().keys().update_vectors();
  layer.bank().set_shuffle(shuffled_pairs(16, random_source(8)));
  matrix<double> x = test::random_matrix<double>(7, 5, 65);
  const matrix<double> dy = test::random_matrix<double>(7, 24, 66);
  matrix<double> y(7, 24), dx(7, 5);
  decltype(layer)::tape tape;
  layer.forward(x, y, tape);
  layer.backward(dy, dx, tape);
  decltype(layer)::workspace workspace;
  const auto chosen_of = [](const auto& memory) {
    const auto& pairs = memory.router.seen.pair;
    return std::vector<index_t>(pairs.data(), pairs.data() + pairs.size());
  };
  const auto chosen = chosen_of(tape);
  const auto report = check_gradients(layer, {{"x", test::span_of(x), test::span_of(std::as_const(dx))}},
                                      [&]() -> std::optional<double> {
                                        layer.forward(x, y, workspace);
                                        if (chosen_of(workspace) != chosen) return {};
                                        return (y.array() * dy.array()).sum();
                                      });
  INFO(report.describe());
  CHECK(report.checked > 60);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("value_table: what is refused, and gathered rows", "[expert][value_table]") {
  CHECK_THROWS_WITH((value_table<float>(4, 6, 5, {.pieces = 2})), Catch::Matchers::Contains("divisible"));
  value_table<float> table(2, 3, 4, {.blocks = 2});
  initialize(table, 67);
  CHECK_THROWS_WITH(table.set_shuffle(std::vector<index_t>{0, 1, 2}), Catch::Matchers::Contains("3 entries"));
  CHECK_THROWS_WITH(table.set_shuffle(std::vector<index_t>{0, 1, 2, 3, 4, 6}), Catch::Matchers::Contains("no place 6"));
  CHECK_THROWS_WITH(table.set_shuffle(std::vector<index_t>{0, 1, 2, 3, 4, 4}), Catch::Matchers::Contains("4 twice"));
  const std::vector<index_t> offsets{0, 0, 0, 0, 0, 1, 3};  // expert 4 has a row, expert 5 two
  const matrix<float> x = test::random_matrix<float>(3, 2, 68);
  matrix<float> y(3, 8);
  y.setConstant(7);
  value_table<float>::tape tape;
  table.forward(x, offsets, y, tape, {});
  CHECK(y.leftCols(4).isZero(0));
  CHECK(test::same_bits(matrix<float>(y.row(0).tail(4)), matrix<float>(table.values().map().row(1))));
  CHECK(test::same_bits(matrix<float>(y.row(2).tail(4)), matrix<float>(table.values().map().row(2))));
  // A shuffle that was loaded may hold anything.
  for_each_parameter(table, [](const std::string& name, auto& p) {
    if (name == "shuffle") p.value()[4] = quiet_nan<float>();
  });
  CHECK_THROWS_WITH(table.forward(x, offsets, y, tape, {}), Catch::Matchers::Contains("no place"));
}
