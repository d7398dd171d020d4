#include <sluice/router/masked/prototypes.hpp>

#include <sluice/capacity/position.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

using namespace sluice;
using test::copy_gate;

namespace {

const test::table_router prototypes_in_table("prototype_router", [] {
  return test::made(prototype_router<double>{6, 4, {.prototypes = 2}}, {.k = 2});
});

using prototypes_over_copies = prototype_router<double, copy_gate<double>>;

prototypes_over_copies some_prototypes(index_t experts, index_t k) {
  return prototypes_over_copies(copy_gate<double>(experts, experts), {.prototypes = k});
}

}  // namespace

TEST_CASE("prototypes: the best of each group, by a softmax of its own", "[router][prototypes]") {
  matrix<double> logits(1, 4);
  logits << 2, 1, 0, 3;
  const auto plan = test::route(some_prototypes(4, 2), logits).plan;
  matrix<double> expected(1, 4);
  expected << .731059, 0, 0, .952574;
  CHECK(test::largest_difference(plan.dense_weights(), expected) <= test::printed);
  logits << 7, 7, 7, 7;  // ties
  expected << .5, 0, .5, 0;
  CHECK(test::largest_difference(test::route(some_prototypes(4, 2), logits).plan.dense_weights(), expected) <= test::bound<double>(2));

  const matrix<double> many = test::random_matrix<double>(11, 6, 3);
  const top_k_router<double, dynamic, dynamic, copy_gate<double>> top1(copy_gate<double>(6, 6), {.top_k = 1, .weights = weighting::pre});
  CHECK(test::plan_bits(test::route(some_prototypes(6, 1), many).plan) == test::plan_bits(test::route(top1, many).plan));
  CHECK(test::route(some_prototypes(6, 6), many).plan.dense_weights() == matrix<double>::Ones(11, 6));
}

TEST_CASE("prototypes: what does not fit is refused", "[router][prototypes]") {
  CHECK_THROWS_WITH(some_prototypes(6, 4), "sluice: E = 6 experts do not make k = 4 prototypes of equal size");
  CHECK_THROWS_WITH(some_prototypes(6, 0), test::contains("k = 0"));
  routing_context<double> context;
  context.top_k = 2;
  CHECK_THROWS_WITH(test::route(some_prototypes(6, 3), test::random_matrix<double>(2, 6, 1), context),
                    test::contains("3 prototypes") && test::contains("k = 2"));
}

TEST_CASE("prototypes: gradients with and without capacity", "[router][prototypes][gradient]") {
  const prototype_router<double> router{6, 4, {.prototypes = 2}};
  const auto report = test::check_router_gradients(router, 9, 96, test::training());
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
  const prototype_router<double, linear_gate<double>, position_capacity> limited(
      linear_gate<double>(6, 4), {.prototypes = 2}, position_capacity(capacity_limit::vmoe(0.5, capacity_rounding::up, 0)));
  index_t dropped = 0;
  const auto other = test::check_router_gradients(limited, 9, 96, test::training(), &dropped);
  INFO(other.describe());
  CHECK(other.largest_error < 1e-6);
  CHECK(dropped > 0);
}

TEST_CASE("prototypes: keeps every promise", "[router][prototypes]") {
  prototype_router<double> router{6, 4, {.prototypes = 2}};
  initialize(router, 3);
  const auto report = test::conformance(router);
  INFO(report.describe());
  CHECK(report.passed());
}
