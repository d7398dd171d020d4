#include <sluice/router/masked/offered.hpp>

#include <sluice/layer/encoders/text_and_image_gate.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "router/layer_checks.hpp"
#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

using namespace sluice;

namespace {

const test::table_router offered_in_table("offered_router", [] {
  return test::made(offered_router<double>(6, 5, {.top_k = 3}), {.k = 3, .offered = 2});
});

using offered_copies = offered_router<double, test::copy_gate<double>>;

routing_context<double> offering(const matrix<index_t>& ids) {
  auto context = test::training();
  context.expert_ids = ids;
  return context;
}

}  // namespace

TEST_CASE("offered: the best of what was offered, fewer where there are fewer, none where there are none",
          "[router][offered]") {
  const offered_copies router(test::copy_gate<double>(4, 4), {.top_k = 2});
  matrix<double> x(4, 4), expected = matrix<double>::Zero(4, 4);
  x << 9, 1, 3, 2, 5, 4, 4, 1, 1, 2, 3, 4, 1, 2, 3, 4;
  matrix<index_t> ids(4, 3);
  ids << 3, 1, 2, 2, 1, no_expert, 1, 1, no_expert, no_expert, 0, 1;
  const auto plan = test::route(router, x, offering(ids)).plan;
  const double high = 1 / (1 + std::exp(-1.0));
  expected(0, 2) = high;
  expected(0, 3) = 1 - high;
  expected(1, 1) = expected(1, 2) = 0.5;  // the first expert would have been better
  expected(2, 1) = 1;
  CHECK(test::largest_difference(plan.dense_weights(), expected) <= test::bound<double>(4));
  CHECK(plan.expert(plan.of_token(1)[0]) == 1);  // of equals the lower, whatever order they were offered in
  CHECK(plan.of_token(3).empty());
}

TEST_CASE("offered: what was not offered has no gradient", "[router][offered]") {
  offered_router<double> router(3, 4, {.top_k = 3});
  initialize(router, 5);
  matrix<index_t> ids(2, 2);
  ids << 0, 2, 2, 0;
  const auto context = offering(ids);
  const matrix<double> x = test::random_matrix<double>(2, 3, 6);
  auto routed = test::route(router, x, context);
  sparse_plan_gradient<double> dplan;
  dplan.weight.assign(routed.plan.rows(), 0.0);
  dplan.weight[0] = 1;
  matrix<double> dx = matrix<double>::Zero(2, 3);
  routed.tape.dseen.zero_like(routed.tape.seen);
  router.backward(x, context, routed.plan, dplan, routed.tape, dx);
  const matrix<double> dweight = router.gate().inner().weight().gradient_matrix();
  CHECK((dweight.row(1).isZero(0) && dweight.row(3).isZero(0)));
  CHECK((dweight.row(0).norm() > 0 && dweight.row(2).norm() > 0));
}

TEST_CASE("offered: a token that holds NaN is invalid, whatever it was offered", "[router][offered][nan]") {
  offered_router<double> router(3, 4, {.top_k = 2});
  initialize(router, 8);
  matrix<index_t> ids(3, 2);
  ids << 0, 2, no_expert, no_expert, 1, 3;
  const auto context = offering(ids);
  matrix<double> x = test::random_matrix<double>(3, 3, 9);
  x(1, 2) = quiet_nan<double>();
  auto routed = test::route(router, x, context);
  REQUIRE(routed.plan.invalid_tokens().size() == 1);
  CHECK(routed.plan.invalid_tokens()[0] == 1);
  sparse_plan_gradient<double> dplan;
  dplan.weight.assign(routed.plan.rows(), 0.5);
  matrix<double> dx = matrix<double>::Zero(3, 3);
  routed.tape.dseen.zero_like(routed.tape.seen);
  router.backward(x, context, routed.plan, dplan, routed.tape, dx);
  CHECK(dx.row(1).isZero(0));
  for (const double v : router.gate().inner().weight().gradient()) CHECK(!is_nan(v));
}

TEST_CASE("offered: refuses calls without offers and experts that do not exist", "[router][offered]") {
  const offered_router<double> router(3, 4, {.top_k = 2});
  const matrix<double> x = test::random_matrix<double>(2, 3, 7);
  CHECK_THROWS_WITH(test::route(router, x, test::training()),
                    Catch::Matchers::Contains("needs routing_context.expert_ids"));
  matrix<index_t> ids(2, 1);
  ids << 1, 4;
  CHECK_THROWS_WITH(test::route(router, x, offering(ids)),
                    Catch::Matchers::Contains("token 1 is offered expert 4 of E = 4"));
  CHECK_THROWS_WITH((offered_router<double>(3, 4, {.top_k = 1})), Catch::Matchers::Contains("constant_weight"));
}

TEST_CASE("offered: keeps the promises of routers", "[router][offered]") {
  offered_router<double> router(6, 5, {.top_k = 2});
  initialize(router, 3);
  matrix<index_t> ids(67, 3);
  for (index_t t = 0; t < 67; ++t)
    for (index_t j = 0; j < 3; ++j) ids(t, j) = (t + j) % 5;
  const conformance_report report = test::conformance(router, offering(ids));
  INFO(report.describe());
  CHECK(report.passed());
}

TEST_CASE("text_and_image_gate: gradients by tokens, text and network equal central differences", "[gate][encoders]") {
  text_and_image_gate<double> gate(4, 3, {.text = 2, .hidden = 5});
  initialize(gate, 8);
  CHECK((gate.inputs() == 4 && gate.experts() == 3 && gate.network().hidden() == 5));
  matrix<double> text = test::random_matrix<double>(2, 2, 9), x = test::random_matrix<double>(6, 4, 10);
  const matrix<double> d = test::random_matrix<double>(6, 3, 11);
  const std::vector<index_t> groups{0, 4, 6};
  auto context = test::training();
  context.groups = groups;
  context.group_features = text;
  decltype(gate)::tape tape;
  matrix<double> logits(6, 3), dx = matrix<double>::Zero(6, 4);
  const auto value = [&] {
    gate.forward(x, context, logits, tape);
    return (logits.array() * d.array()).sum();
  };
  value();
  CHECK(test::same_bits(matrix<double>(logits.row(0)), matrix<double>(logits.row(3))));
  zero_gradients(gate);
  ensure_gradients(gate);
  gate.backward(x, context, d, tape, dx);
  const matrix<double> dtext = text_and_image_gate<double>::text_gradient(tape).map();
  const auto report = check_gradients(
      gate, {{"x", test::span_of(x), test::span_of(dx)}, {"text", test::span_of(text), test::span_of(dtext)}}, value);
  INFO(report.describe());
  CHECK(report.checked == 24 + 4 + 5 * 6 + 5 + 3 * 5 + 3);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("text_and_image_gate: a mixture of offered experts keeps the promises of layers", "[layer][encoders]") {
  using router = offered_router<double, text_and_image_gate<double>>;
  moe_layer layer{router{text_and_image_gate<double>(4, 3, {.text = 2}), {.top_k = 2}},
                  expert_bank<ffn<double, gelu>>(3, 4, 5)};
  initialize(layer, 12);
  layer_check_options<double> options{.tokens = 12, .gradient_tokens = 6};
  const std::vector<index_t> groups{0, 12};
  const matrix<double> text = test::random_matrix<double>(1, 2, 13);
  matrix<index_t> ids(12, 2);
  for (index_t t = 0; t < 12; ++t) ids.row(t) << t % 3, (t + 1) % 3;
  options.context.group_features = text;
  options.context.expert_ids = ids;
  const auto report = check_layer(layer, options);
  INFO(report.describe());
  CHECK(report.passed());
}
