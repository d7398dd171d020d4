#include <sluice/router/every_expert/dense_softmax.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/constant.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/loss/importance.hpp>
#include <sluice/loss/router_z.hpp>

#include "router/any_router.hpp"
#include "router/layer_checks.hpp"
#include "router/router_table.hpp"

using namespace sluice;

namespace {

const test::table_router dense_softmax_in_table("dense_softmax_router", [] {
  return test::made(dense_softmax_router<double>{6, 4});
});

}  // namespace

TEST_CASE("dense_softmax: keeps every promise", "[router][dense_softmax]") {
  dense_softmax_router<double> router{6, 3};
  initialize(router, 1);
  const auto report = test::conformance(router);
  INFO(report.describe());
  CHECK(report.passed());
}

TEST_CASE("dense_softmax: every token goes to every expert by softmax, but for padding and NaN",
          "[router][dense_softmax][nan]") {
  dense_softmax_router<double> router{3, 3};
  router.gate().weight().map().setIdentity();  // logits are the tokens
  matrix<double> x(4, 3);
  x << std::log(2), std::log(5), std::log(3), 1, 1, 1, 7, 8, 9, 0, quiet_nan<double>(), 0;
  const std::vector<std::uint8_t> mask{1, 1, 0, 1};
  routing_context<double> context;
  context.token_mask = mask;
  dense_plan<double> plan;
  dense_softmax_router<double>::tape tape;
  router.route(x, context, plan, tape);
  matrix<double> expected(4, 3);
  expected << .2, .5, .3, 1 / 3., 1 / 3., 1 / 3., 0, 0, 0, 0, 0, 0;
  CHECK(test::largest_difference(plan.dense_weights(), expected) <= test::bound<double>(3));
  REQUIRE(plan.invalid_tokens().size() == 1);
  CHECK(plan.invalid_tokens()[0] == 3);
  CHECK(plan.rows() == 6);
  CHECK(tape.seen.top_k == 3);

  context = {};
  context.top_k = 2;
  CHECK_THROWS_WITH(router.route(x.topRows(2), context, plan, tape),
                    "sluice: a dense mixture uses all of E = 3 experts; the call asks for k = 2");
  context.top_k = 3;
  CHECK_NOTHROW(router.route(x.topRows(2), context, plan, tape));
  router.route(x.topRows(0), {}, plan, tape);
  CHECK(plan.rows() == 0);
}

TEST_CASE("dense_softmax: the readable reference and central differences, for both kinds of banks",
          "[router][dense_softmax][gradient]") {
  const std::vector<std::uint8_t> mask{1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1};
  auto context = test::in_training();
  context.token_mask = mask;
  const auto check = [&](auto layer, bool is_fused) {
    CHECK(decltype(layer)::fused == is_fused);
    initialize(layer, 11);
    const auto report = test::layer_gradients(layer, test::random_matrix<double>(11, 6, 13), context);
    INFO(report.describe());
    CHECK(report.checked > 50);
    CHECK(report.largest_error < test::gradient_tolerance);
    const auto d = test::difference_from_reference(layer, test::random_matrix<double>(40, 6, 14));
    CHECK(d.magnitude > 0.1);
    CHECK(d.difference <= test::bound<double>(6 + 9 + 5, d.magnitude));
  };
  check(moe_layer{dense_softmax_router<double>{linear_gate<double>(6, 5, {.bias = true})},
                  expert_bank<swiglu<double>>{5, 6, 9}, importance_loss{.coefficient = 0.1},
                  router_z_loss{.coefficient = 0.05}},
        true);
  check(moe_layer{dense_softmax_router<double>{6, 5}, expert_bank<constant_expert<double>>(5, index_t(6))}, false);
}

TEST_CASE("dense_softmax: equal bits for every thread count, and those of a sparse plan of all pairs",
          "[router][dense_softmax][determinism]") {
  moe_layer layer{dense_softmax_router<double>{12, 7}, expert_bank<swiglu<double>>{7, 12, 9}};
  initialize(layer, 71);
  test::check_equal_bits(layer, 131, test::in_training());

  const matrix<double> x = test::random_matrix<double>(50, 12, 72);
  matrix<double> y(50, 12), z = matrix<double>::Zero(50, 12);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  const matrix<double> weights = workspace.plan.dense_weights();
  sparse_plan<double> pairs;
  pairs.reset(50, 7);
  for (index_t t = 0; t < 50; ++t)
    for (index_t e = 0; e < 7; ++e) pairs.add(t, e, weights(t, e), e);
  pairs.finish();
  expert_bank<swiglu<double>>::tape tape;
  layer.bank().forward_routed(x, pairs.routed(), z, tape, {});
  CHECK(test::same_bits(y, z));
  CHECK(test::largest_difference(matrix<double>(weights.rowwise().sum()), matrix<double>::Ones(50, 1)) <=
        test::bound<double>(7));
}
