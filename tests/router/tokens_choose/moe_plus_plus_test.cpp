#include <sluice/router/tokens_choose/moe_plus_plus.hpp>

#include <sluice/capacity/position.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/constant.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/expert/union.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/gradient_check.hpp>
#include <sluice/train/initialize.hpp>

#include "router/router_table.hpp"
#include "support.hpp"

using namespace sluice;

namespace {

const test::table_router moe_plus_plus_in_table("moe_plus_plus_router", [] {
  return test::made(moe_plus_plus_router<double>{6, 5}, {.k = 2});
});

using plain_router = moe_plus_plus_router<double, linear_gate<double>>;
using linked_router = moe_plus_plus_router<double>;

/// 3 FFNs, 2 constants, copy, zero.
auto unlike_experts(index_t width) {
  return expert_union{expert_bank<swiglu<double>>(3, width, 4), expert_bank<constant_expert<double>>(2, width),
                      expert_bank<identity_expert<double>>(1, width), expert_bank<zero_expert<double>>(1, width)};
}

/// A router whose logits are the tokens themselves.
plain_router copying_router(index_t experts, plain_router::options o) {
  linear_gate<double> gate(experts, experts);
  gate.weight().map().setIdentity();
  return plain_router(std::move(gate), o);
}

struct routed_linked {
  sparse_plan<double> plan;
  plain_router::tape tape;

  routed_linked(const plain_router& router, const matrix<double>& logits, bool training = true) {
    routing_context<double> context;
    context.training = training;
    router.route(logits, context, plan, tape);
  }
  double weight(index_t token, index_t expert) const {
    for (const index_t i : plan.of_token(token))
      if (plan.expert(i) == expert) return plan.weight(i);
    return -1;  // not chosen
  }
};

matrix<double> row(std::initializer_list<double> probabilities) {
  matrix<double> logits(1, static_cast<index_t>(probabilities.size()));
  index_t e = 0;
  for (const double p : probabilities) logits(0, e++) = std::log(p);
  return logits;
}

}  // namespace

TEST_CASE("moe_plus_plus_router: the zero expert's weight is removed before the others are normalised", "[router]") {
  const routed_linked r(copying_router(4, {.multiply_input = false}), row({0.5, 0.15, 0.05, 0.3}));
  CHECK(r.weight(0, 0) == 1);
  CHECK(r.weight(0, 3) == 0);
  const routed_linked two(copying_router(4, {.top_k = 3, .multiply_input = false}), row({0.5, 0.15, 0.05, 0.3}));
  CHECK(two.weight(0, 0) == Approx(0.5 / 0.65).epsilon(1e-14));
  CHECK(two.weight(0, 3) == 0);
  CHECK(two.weight(0, 1) == Approx(0.15 / 0.65).epsilon(1e-14));
}

TEST_CASE("moe_plus_plus_router: Mixtral weights keep the zero expert's", "[router]") {
  const routed_linked r(copying_router(4, {.weights = moe_plus_plus_weights::mixtral, .multiply_input = false}),
                 row({0.5, 0.15, 0.05, 0.3}));
  CHECK(r.weight(0, 0) == Approx(0.625).epsilon(1e-14));
  CHECK(r.weight(0, 3) == Approx(0.375).epsilon(1e-14));
}

TEST_CASE("moe_plus_plus_router: nothing but zero experts gives weights of 0, not 0/0", "[router]") {
  const routed_linked one(copying_router(3, {.top_k = 1, .constant_weight = true}), row({0.1, 0.2, 0.7}));
  CHECK(one.weight(0, 2) == 0);
  const routed_linked both(copying_router(4, {.zero_experts = 2}), row({0.1, 0.1, 0.5, 0.3}));
  CHECK(both.weight(0, 2) == 0);
  CHECK(both.weight(0, 3) == 0);
}

TEST_CASE("moe_plus_plus_router: an overwhelming zero expert leaves the other's weight 1", "[router]") {
  // The other's probability rounds to 0 in double: dividing it by itself would be 0/0.
  matrix<double> logits(1, 3);
  logits << -900, -2000, 100;
  const routed_linked r(copying_router(3, {}), logits);
  CHECK(r.weight(0, 0) == 1);
  CHECK(r.weight(0, 2) == 0);
}

TEST_CASE("moe_plus_plus_router: logits are scaled to a deviation for the weights only", "[router]") {
  matrix<double> logits(1, 4);
  logits << 1, 5, -3, 2;
  const routed_linked r(copying_router(4, {.weights = moe_plus_plus_weights::mixtral, .target_deviation = 1.5}), logits);
  // Mean 1.25, squares 0.0625 + 14.0625 + 18.0625 + 0.5625 = 32.75, deviation sqrt(32.75 / 3).
  const double gap = 3 * 1.5 / std::sqrt(32.75 / 3);
  CHECK(r.weight(0, 1) == Approx(1 / (1 + std::exp(-gap))).epsilon(1e-13));
  CHECK(r.tape.seen.clean.map() == logits);
}

TEST_CASE("moe_plus_plus_router: logits without a deviation weigh as they are", "[router]") {
  const double large = GENERATE(std::numeric_limits<double>::infinity(), 1e200);
  linear_gate<double> gate(1, 4);
  gate.weight().map() << large, 1, -large, large;
  plain_router router(std::move(gate),
                      {.top_k = 3, .weights = moe_plus_plus_weights::mixtral, .target_deviation = 1.5});
  const matrix<double> x = matrix<double>::Ones(1, 1);
  routed_linked r(router, x);
  CHECK(r.plan.invalid_tokens().empty());
  CHECK(r.weight(0, 0) == 0.5);
  CHECK(r.weight(0, 3) == 0.5);
  CHECK(r.weight(0, 1) == 0);
  sparse_plan<double>::gradient gradient;
  gradient.weight.assign(3, 1.0);
  gradient.weight[0] = 3;
  gradient.input_scale.assign(3, 0.0);
  r.tape.dseen.zero_like(r.tape.seen);
  matrix<double> dx = matrix<double>::Zero(1, 1);
  router.backward(x, {}, r.plan, gradient, r.tape, dx);
  matrix<double> expected(4, 1);  // of the logits: w (g - <w, g>)
  expected << 0.5, 0, 0, -0.5;
  CHECK(router.gate().weight().gradient_matrix() == expected);
}

TEST_CASE("moe_plus_plus_router: copy and zero alone give x back", "[router]") {
  const double factor = GENERATE(1.0, 2.0);
  plain_router router(5, 2, {.multiply_input = factor == 2});
  moe_layer layer{std::move(router),
                  expert_union{expert_bank<identity_expert<double>>(1, 5), expert_bank<zero_expert<double>>(1, 5)}};
  initialize(layer, 21);
  const matrix<double> x = test::random_matrix<double>(8, 5, 22);
  matrix<double> y(8, 5);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  CHECK(y == factor * x);
}

TEST_CASE("moe_plus_plus_router: inputs are multiplied by the router's own k", "[router]") {
  const plain_router router = copying_router(4, {.top_k = 3});
  const routed_linked r(router, test::random_matrix<double>(6, 4, 23));
  CHECK(r.plan.has_input_scale());
  for (const double scale : r.plan.input_scales()) CHECK(scale == 3);
  CHECK_FALSE(routed_linked(copying_router(4, {.multiply_input = false}), test::random_matrix<double>(6, 4, 23))
                  .plan.has_input_scale());
}

TEST_CASE("moe_plus_plus_router: without zero experts it is top-k with renormalised weights", "[router]") {
  plain_router router = copying_router(5, {.zero_experts = 0, .multiply_input = false});
  linear_gate<double> gate(5, 5);
  gate.weight().map().setIdentity();
  const top_k_router<double> plain(std::move(gate), {.top_k = 2});
  const matrix<double> x = test::random_matrix<double>(20, 5, 25);
  const routed_linked r(router, x);
  sparse_plan<double> expected;
  top_k_router<double>::tape tape;
  plain.route(x, {}, expected, tape);
  CHECK(test::largest_difference(r.plan.dense_weights(), expected.dense_weights()) < test::bound<double>(2));
}

TEST_CASE("moe_plus_plus_router: k = 1 has no gradient and is refused", "[router]") {
  CHECK_THROWS_WITH(plain_router(4, 4, {.top_k = 1}), Catch::Matchers::Contains("k = 1"));
  const plain_router router(4, 4, {.top_k = 2});
  routing_context<double> context;
  context.training = true;
  context.top_k = 1;
  sparse_plan<double> plan;
  plain_router::tape tape;
  const matrix<double> x = test::random_matrix<double>(3, 4, 27);
  CHECK_THROWS_AS(router.route(x, context, plan, tape), std::invalid_argument);
  context.training = false;
  CHECK_NOTHROW(router.route(x, context, plan, tape));
}

TEST_CASE("moe_plus_plus_router: options without meaning are refused", "[router]") {
  CHECK_THROWS_AS(plain_router(4, 4, {.zero_experts = -1}), std::invalid_argument);
  CHECK_THROWS_AS(plain_router(4, 4, {.zero_experts = 5}), std::invalid_argument);
  CHECK_THROWS_AS(plain_router(4, 4, {.target_deviation = -1}), std::invalid_argument);
  CHECK_THROWS_AS(plain_router(4, 1, {.top_k = 1, .target_deviation = 1, .constant_weight = true}),
                  std::invalid_argument);
}

TEST_CASE("moe_plus_plus_router: gradients through a layer of unlike experts equal central differences",
          "[router][gradient]") {
  using options = plain_router::options;
  const auto o = GENERATE(options{.top_k = 3}, options{.top_k = 3, .weights = moe_plus_plus_weights::mixtral},
                          options{.top_k = 3, .target_deviation = 1.5, .multiply_input = false},
                          options{.weights = moe_plus_plus_weights::mixtral, .target_deviation = 0.8});
  moe_layer layer{plain_router(6, 7, o), unlike_experts(6), moe_plus_plus_balance(3, 4, 0.75, 1)};
  initialize(layer, 31);
  matrix<double> x = test::random_matrix<double>(14, 6, 32);
  const matrix<double> dy = test::random_matrix<double>(14, 6, 33);
  matrix<double> y(14, 6), dx(14, 6);
  decltype(layer)::tape tape;
  layer.forward(x, y, tape);
  REQUIRE(tape.plan.load(6) > 0);  // the zero expert
  layer.backward(dy, dx, tape);
  const auto report = check_gradients(layer, {{"x", test::span_of(x), test::span_of(std::as_const(dx))}}, [&] {
    decltype(layer)::tape other;
    layer.forward(x, y, other);
    return (y.array() * dy.array()).sum() + other.loss();
  });
  INFO(report.describe());
  CHECK(report.checked > 300);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("moe_plus_plus_router: gradients flow into the router of the layer before", "[router][gradient]") {
  // Two linked layers; the objective reads the second one only, so part of the first router's gradient arrives by R.
  // (Inputs are not multiplied by k: differences of a large objective would be less exact.)
  moe_layer first{plain_router(6, 7, {.top_k = 3, .multiply_input = false}), unlike_experts(6)};
  moe_layer second{linked_router(6, 7, {.top_k = 3, .multiply_input = false}), unlike_experts(6)};
  initialize(first, 41);
  initialize(second, 42);
  matrix<double> x = test::random_matrix<double>(9, 6, 43);
  const matrix<double> dy = test::random_matrix<double>(9, 6, 44);
  matrix<double> h(9, 6), y(9, 6), dh(9, 6), dx(9, 6);
  decltype(first)::tape tape1;
  decltype(second)::tape tape2;
  const auto objective = [&] {
    first.forward(x, h, tape1);
    routing_context<double> context;
    context.training = true;
    context.previous_logits = std::as_const(tape1.router.seen.clean).map();
    second.forward(h, y, tape2, context);
    return (y.array() * dy.array()).sum();
  };
  objective();
  second.backward(dy, dh, tape2);
  tape1.router.dseen.clean.map() += tape2.router.gate.previous_logits_gradient().map();
  first.backward(dh, dx, tape1);
  // That part is not small: without it the check below could not fail.
  CHECK(tape2.router.gate.previous_logits_gradient().map().cwiseAbs().maxCoeff() > 1e-2);

  const auto report_first =
      check_gradients(first, {{"x", test::span_of(x), test::span_of(std::as_const(dx))}}, objective);
  INFO(report_first.describe());
  CHECK(report_first.largest_error < 1e-6);
  const auto report_second = check_gradients(second, {}, objective);
  INFO(report_second.describe());
  CHECK(report_second.largest_error < 1e-6);
}

TEST_CASE("moe_plus_plus_router: the zero expert's logit has no gradient from the output", "[router]") {
  moe_layer layer{copying_router(7, {.top_k = 3}), unlike_experts(7)};
  const matrix<double> identity = layer.router().gate().weight().map();
  initialize(layer, 51);
  layer.router().gate().weight().map() = identity;
  const matrix<double> x = test::random_matrix<double>(30, 7, 52);
  const matrix<double> dy = test::random_matrix<double>(30, 7, 53);
  matrix<double> y(30, 7), dx(30, 7);
  decltype(layer)::tape tape;
  layer.forward(x, y, tape);
  REQUIRE(tape.plan.load(6) > 0);
  layer.backward(dy, dx, tape);
  CHECK(tape.router.dclean.map().col(6).isZero(0));
  CHECK_FALSE(tape.router.dclean.map().isZero(0));
}

TEST_CASE("moe_plus_plus_balance: eta and f", "[router][loss]") {
  // Fixture F with k = 2: f = (0.75, 0.75, 0.25, 0.25), P = (0.481849, 0.341700, 0.100159, 0.076292).
  matrix<double> logits(4, 4);
  logits << 2.0, 1.0, 0.0, -1.0, 1.5, 1.0, 0.5, 0.0, 0.0, 3.0, 1.0, 0.5, 2.5, 0.0, -0.5, 0.5;
  routed_linked r(copying_router(4, {}), logits);
  r.tape.dseen.zero_like(r.tape.seen);
  const double loss =
      moe_plus_plus_balance(2, 2, 0.5, 0.01)(r.tape.seen, r.plan, routing_context<double>{}, r.tape.dseen);
  CHECK(loss == Approx(0.01 * (0.75 * 0.481849 + 0.75 * 0.341700 + 0.5 * 0.25 * (0.100159 + 0.076292))).margin(1e-8));
  CHECK_THROWS_AS(moe_plus_plus_balance(-1, 2), std::invalid_argument);
}

TEST_CASE("moe_plus_plus_router: capacities differ between experts that cost and those that do not", "[router]") {
  // 8 FFNs and 4 others, k = 2, T = 64, gamma = 1.1, tau = 0.75: 10.56 and 14.08, rounded up.
  linear_gate<double> gate(12, 12);
  gate.weight().map().setIdentity();
  moe_plus_plus_router<double, linear_gate<double>, position_capacity> router(
      std::move(gate), {}, position_capacity(capacity_limit::moe_plus_plus(1.1, 0.75, 8, 4)));
  matrix<double> logits = 0.01 * test::random_matrix<double>(64, 12, 61);
  logits.col(2).array() += 9;   // everyone wants this FFN
  logits.col(10).array() += 8;  // and the copy expert
  routing_context<double> context;
  context.training = true;
  sparse_plan<double> plan;
  decltype(router)::tape tape;
  router.route(logits, context, plan, tape);
  CHECK(plan.load(2) == 11);
  CHECK(plan.load(10) == 15);
  CHECK(plan.size() + static_cast<index_t>(plan.dropped().size()) == 128);
}

TEST_CASE("moe_plus_plus_router: NaN, padding and no tokens", "[router]") {
  const plain_router router = copying_router(4, {});
  matrix<double> logits = test::random_matrix<double>(5, 4, 71);
  logits(1, 2) = quiet_nan<double>();
  const std::vector<std::uint8_t> mask{1, 1, 1, 0, 1};
  routing_context<double> context;
  context.training = true;
  context.token_mask = mask;
  sparse_plan<double> plan;
  plain_router::tape tape;
  router.route(logits, context, plan, tape);
  REQUIRE(plan.invalid_tokens().size() == 1);
  CHECK(plan.invalid_tokens()[0] == 1);
  CHECK(plan.of_token(3).empty());
  CHECK(plan.of_token(0).size() == 2);
  const routed_linked none(router, matrix<double>(0, 4));
  CHECK(none.plan.size() == 0);
}
