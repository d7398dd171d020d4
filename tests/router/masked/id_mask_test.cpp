#include <sluice/router/masked/id_mask.hpp>

#include <sluice/expert/ffn.hpp>
#include <sluice/loss/switch_balance.hpp>
#include <sluice/train/initialize.hpp>

#include "router/layer_checks.hpp"
#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

using namespace sluice;
using test::copy_gate;

namespace {

const test::table_router mask_moe_in_table("mask_moe_router", [] {
  matrix<index_t> table = matrix<index_t>::Ones(8, 4);
  table.bottomRows(4).setIdentity();  // rare ids
  return test::made(mask_moe_router<double>(masked_gate(linear_gate<double>(6, 4), table), {.top_k = 2}), {.k = 2});
});

using masked_copies = mask_moe_router<double, copy_gate<double>>;

/// Ids 0: all experts; 1: expert 2 alone; 2: experts 1 and 3.
matrix<index_t> some_mask() {
  matrix<index_t> table(3, 4);
  table << 1, 1, 1, 1, 0, 0, 1, 0, 0, 1, 0, 1;
  return table;
}

masked_copies masked_over_copies(index_t k, index_t unknown = -1) {
  return masked_copies(masked_gate<copy_gate<double>>(copy_gate<double>(4, 4), some_mask(), {.unknown = unknown}),
                       {.top_k = k});
}

routing_context<double> masked_ids(const std::vector<index_t>& ids) {
  auto context = test::training();
  context.token_ids = ids;
  return context;
}

}  // namespace

TEST_CASE("id_mask: a token sees the experts of its id, and fewer than k where there are no more", "[router][id_mask]") {
  const matrix<double> logits = test::fixture_f<double>();
  const std::vector<index_t> ids{0, 1, 2, 2};
  for (const index_t k : {1, 2, 3}) {
    const auto plan = test::route(masked_over_copies(k), logits, masked_ids(ids)).plan;
    CHECK(static_cast<index_t>(plan.of_token(0).size()) == k);
    REQUIRE(plan.of_token(1).size() == 1);
    CHECK(plan.expert(plan.of_token(1)[0]) == 2);
    CHECK(plan.weight(plan.of_token(1)[0]) == 1);
    CHECK(static_cast<index_t>(plan.of_token(2).size()) == (std::min<index_t>)(k, 2));
    const auto p = test::naive_softmax(&logits(0, 0), 4);
    for (const index_t i : plan.of_token(0)) CHECK(std::abs(plan.weight(i) - p[as_size(plan.expert(i))]) <= test::bound<double>(4));
    const double two[] = {logits(2, 1), logits(2, 3)};
    CHECK(plan.expert(plan.of_token(2)[0]) == 1);
    CHECK(std::abs(plan.weight(plan.of_token(2)[0]) - test::naive_softmax(two, 2)[0]) <= test::bound<double>(4));
  }
  // Ids that all see all: as without a mask.
  const top_k_router<double, dynamic, dynamic, copy_gate<double>> plain(copy_gate<double>(4, 4), {.top_k = 2, .weights = weighting::pre});
  CHECK(test::plan_bits(test::route(masked_over_copies(2), logits, masked_ids({0, 0, 0, 0})).plan) ==
        test::plan_bits(test::route(plain, logits).plan));
}

TEST_CASE("id_mask: unknown ids are refused, or count as one that is known", "[router][id_mask]") {
  const matrix<double> logits = test::fixture_f<double>();
  const std::vector<index_t> ids{0, 9, -3, 2};
  CHECK_THROWS_WITH(test::route(masked_over_copies(1), logits, masked_ids(ids)), test::contains("token 1 has id 9"));
  CHECK_THROWS_WITH(test::route(masked_over_copies(1), logits), test::contains("token_ids"));
  const auto plan = test::route(masked_over_copies(1, 1), logits, masked_ids(ids)).plan;
  for (const index_t t : {1, 2}) CHECK(plan.expert(plan.of_token(t)[0]) == 2);
  auto context = masked_ids(ids);
  const std::vector<std::uint8_t> mask{1, 0, 0, 1};
  context.token_mask = mask;
  CHECK(test::route(masked_over_copies(1), logits, context).plan.size() == 2);
  CHECK_THROWS_WITH(masked_over_copies(1, 3), test::contains("id 3") && test::contains("ids 0 to 2"));
  matrix<index_t> blind = some_mask();
  blind.row(1).setZero();
  CHECK_THROWS_WITH(masked_gate<copy_gate<double>>(copy_gate<double>(4, 4), blind), test::contains("id 1 sees no expert"));
  CHECK_THROWS_WITH(masked_gate<copy_gate<double>>(copy_gate<double>(3, 3), blind), test::contains("E = 3"));
  CHECK(test::route(masked_over_copies(1), matrix<double>(0, 4)).plan.size() == 0);
}

TEST_CASE("id_mask: rare ids are spread evenly, frequent ones see as many as asked", "[router][id_mask]") {
  std::vector<index_t> occurrences;
  for (index_t id = 0; id < 50; ++id) occurrences.push_back(id % 5 == 0 ? 100 : id % 3);
  const auto table = frequency_mask(occurrences, 7, {.frequent = 10, .visible = 3, .random = random_source(5)});
  std::vector<index_t> rare(7, 0);
  for (index_t id = 0; id < 50; ++id) {
    CHECK(table.row(id).sum() == (id % 5 == 0 ? 3 : 1));
    if (id % 5 != 0)
      for (index_t e = 0; e < 7; ++e) rare[as_size(e)] += table(id, e);
  }
  CHECK(*std::ranges::max_element(rare) - *std::ranges::min_element(rare) <= 1);
  CHECK(frequency_mask(occurrences, 7, {.frequent = 10, .visible = 3, .random = random_source(6)}) != table);
  CHECK((frequency_mask(occurrences, 7, {.frequent = 10}).row(0).array() == 1).all());
  CHECK_THROWS_WITH(frequency_mask(occurrences, 7, {.visible = 8}), test::contains("visible = 8, E = 7"));
}

TEST_CASE("id_mask: gradients, of a balance loss too, one visible expert gives the gate none", "[router][id_mask][gradient]") {
  const std::vector<index_t> ids{0, 1, 2, 0, 0, 2, 1, 0, 2};
  using linear = masked_gate<linear_gate<double>>;
  moe_layer layer{mask_moe_router<double>(linear(linear_gate<double>(5, 4), some_mask()), {.top_k = 2}),
                  expert_bank<ffn<double, silu>>(4, 5, 3), switch_balance{.coefficient = 0.3}};
  initialize(layer, 5);
  const auto report = test::layer_gradients(layer, test::random_matrix<double>(9, 5, 2), masked_ids(ids));
  INFO(report.describe());
  CHECK(report.largest_error < test::gradient_tolerance);

  const std::vector<index_t> rare(9, 1);
  decltype(layer)::tape tape;
  matrix<double> y(9, 5), dx(9, 5);
  moe_layer without{layer.router(), layer.bank()};
  decltype(without)::tape own;
  without.forward(test::random_matrix<double>(9, 5, 2), y, own, masked_ids(rare));
  zero_gradients(without);
  without.backward(y, dx, own);
  for (const double g : without.router().gate().inner().weight().gradient()) CHECK(g == 0);
}

TEST_CASE("id_mask: keeps every promise", "[router][id_mask]") {
  std::vector<index_t> ids;
  for (index_t t = 0; t < 67; ++t) ids.push_back(t * t % 3);
  mask_moe_router<double> router(masked_gate<linear_gate<double>>(linear_gate<double>(5, 4), some_mask()), {.top_k = 2});
  initialize(router, 3);
  const auto report = test::conformance(router, masked_ids(ids));
  INFO(report.describe());
  CHECK(report.passed());
}
