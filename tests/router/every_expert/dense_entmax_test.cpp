#include <sluice/router/every_expert/dense_entmax.hpp>

#include <sluice/gate/batch_normalized.hpp>
#include <sluice/gate/centred.hpp>

#include "router/any_router.hpp"
#include "router/layer_checks.hpp"
#include "router/router_table.hpp"

using namespace sluice;

namespace {

const test::table_router dense_entmax_in_table("dense_entmax_router", [] {
  return test::made(dense_entmax_router<double>{6, 4});
});

}  // namespace

TEST_CASE("dense_entmax: keeps every promise", "[router][dense_entmax]") {
  dense_entmax_router<double> router{6, 3};
  initialize(router, 1);
  const auto report = test::conformance(router);
  INFO(report.describe());
  CHECK(report.passed());
}

TEST_CASE("dense_entmax: far experts have weight zero", "[router][dense_entmax]") {
  dense_entmax_router<double> router{3, 3};
  router.gate().weight().map().setIdentity();  // logits are the tokens
  matrix<double> x(2, 3), expected(2, 3);
  x << 1, 0, -1, 4, 4, 4;
  expected << .830719, .169281, 0, 1 / 3., 1 / 3., 1 / 3.;
  dense_plan<double> plan;
  dense_entmax_router<double>::tape tape;
  router.route(x, {}, plan, tape);
  CHECK(test::largest_difference(plan.dense_weights(), expected) <= test::printed_numbers);
  CHECK(plan.dense_weights()(0, 2) == 0);
}

TEST_CASE("dense_entmax: keeps every promise over normalised logits", "[router][dense_entmax][gate]") {
  const auto check = [](auto router) {
    initialize(router, 2);
    const auto report = test::conformance(router);
    INFO(report.describe());
    CHECK(report.passed());
  };
  check(dense_entmax_router<double, centred_gate<linear_gate<double>>>{6, 3});
  check(dense_entmax_router<double, batch_normalized_gate<linear_gate<double>>>{6, 3});
}
