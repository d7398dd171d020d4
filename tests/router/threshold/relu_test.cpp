#include <sluice/router/threshold/relu.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/loss/relu_l1.hpp>
#include <sluice/loss/router_z.hpp>

#include "router/layer_checks.hpp"
#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

using namespace sluice;
using test::copy_gate;
using test::route;

namespace {

const test::table_router relu_in_table("relu_router", [] {
  return test::made(relu_router<double>{6, 4});
});

template <typename Scalar>
using given_relu = relu_router<Scalar, copy_gate<Scalar>>;  // logits are the input

}  // namespace

TEST_CASE("relu: positive logits are the weights", "[router][relu]") {
  matrix<double> logits(3, 4);
  logits << 2, -1, .5, -.3, .2, .1, -.4, -1, -.5, -.1, -.2, -.3;
  const auto r = route(given_relu<double>(4, 4), logits);
  CHECK(r.plan.size() == 4);
  CHECK(r.plan.dense_weights() == logits.cwiseMax(0));
  const index_t loads[] = {2, 1, 1, 0};
  for (index_t e = 0; e < 4; ++e) CHECK(r.plan.load(e) == loads[e]);
  CHECK(r.plan.of_token(2).empty());
  CHECK(r.plan.rank(r.plan.of_token(0)[1]) == 1);
  CHECK(r.tape.seen.top_k == 1);  // 4 / 3, rounded
}

TEST_CASE("relu: a logit of exactly zero is not active", "[router][relu][ties]") {
  matrix<float> logits(1, 3);
  logits << 0.0F, -0.0F, std::numeric_limits<float>::min();
  const auto r = route(given_relu<float>(3, 3), logits);
  REQUIRE(r.plan.size() == 1);
  CHECK(r.plan.expert(0) == 2);
}

TEST_CASE("relu: the output is continuous where a logit crosses zero", "[router][relu]") {
  moe_layer layer{relu_router<double>{3, 2}, expert_bank<ffn<double>>{2, 3, 4}};
  initialize(layer, 3);
  layer.router().gate().weight().map() << 1, 0, 0, 0, 1, 0;
  matrix<double> x(1, 3), y(1, 3), z(1, 3);
  x << 0.7, 0, 0.3;
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  CHECK(workspace.plan.size() == 1);
  x(0, 1) = 1e-9;
  layer.forward(x, z, workspace);
  CHECK(workspace.plan.size() == 2);
  CHECK(test::largest_difference(y, z) < 1e-7);  // the new expert's share is 1e-9 times its output, of order 1
  CHECK(test::largest_difference(y, z) > 0);
}

TEST_CASE("relu: gradients equal central differences", "[router][relu][gradient]") {
  const auto balanced = GENERATE(true, false);
  const std::vector<std::uint8_t> mask{1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1};
  auto context = test::in_training();
  if (balanced) context.token_mask = mask;
  moe_layer layer{relu_router<double>{linear_gate<double>(6, 5, {.bias = true})},
                  expert_bank<ffn<double, gelu>>{5, 6, 4}, relu_l1<fixed_l1>{2, {0.3}, {.balanced = balanced}},
                  router_z_loss{.coefficient = 0.05}};
  initialize(layer, 11);
  test::fill_normal(layer.router().gate().bias(), 12, 0.1);
  const auto report = test::layer_gradients(layer, test::random_matrix<double>(11, 6, 13), context);
  INFO(report.describe());
  CHECK(report.checked > 300);
  CHECK(report.largest_error < test::gradient_tolerance);
}

TEST_CASE("relu: an expert that nobody activates has gradient zero", "[router][relu][gradient]") {
  moe_layer layer{relu_router<double>{4, 3}, expert_bank<ffn<double>>{3, 4, 5}};
  initialize(layer, 21);
  matrix<double> x = test::random_matrix<double>(9, 4, 22).cwiseAbs();
  layer.router().gate().weight().map().row(1).setConstant(-1);
  decltype(layer)::tape tape;
  matrix<double> y(9, 4), dx(9, 4);
  layer.forward(x, y, tape);
  layer.backward(test::random_matrix<double>(9, 4, 23), dx, tape);
  REQUIRE(tape.plan.load(1) == 0);
  REQUIRE(tape.plan.load(0) > 0);
  CHECK(layer.router().gate().weight().gradient_matrix().row(1).isZero(0));
  CHECK_FALSE(layer.router().gate().weight().gradient_matrix().row(0).isZero(0));
  CHECK(layer.bank().expert(1).up().gradient_matrix().isZero(0));
}

TEST_CASE("relu: a token without positive logits has output zero", "[router][relu]") {
  moe_layer layer{relu_router<double>{4, 3}, expert_bank<ffn<double>>{3, 4, 5, {.bias = true}}};
  initialize(layer, 31);
  layer.router().gate().weight().map().setConstant(1);
  for (index_t e = 0; e < 3; ++e) test::fill_normal(layer.bank().expert(e).down_bias(), 32);
  matrix<double> x = matrix<double>::Ones(2, 4), y(2, 4);
  x.row(1).setConstant(-1);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  CHECK(workspace.plan.of_token(0).size() == 3);
  CHECK_FALSE(y.row(0).isZero(0));
  CHECK(y.row(1).isZero(0));
}

TEST_CASE("relu: NaN and infinity", "[router][relu]") {
  matrix<float> logits = test::random_matrix<float>(6, 4, 41);
  const auto clean = route(given_relu<float>(4, 4), logits);
  logits(2, 3) = quiet_nan<float>();
  const auto r = route(given_relu<float>(4, 4), logits);
  REQUIRE(r.plan.invalid_tokens().size() == 1);
  CHECK(r.plan.invalid_tokens()[0] == 2);
  CHECK(r.plan.of_token(2).empty());
  for (index_t t = 0; t < 6; ++t)
    if (t != 2)
      for (index_t e = 0; e < 4; ++e) CHECK(r.plan.dense_weights()(t, e) == clean.plan.dense_weights()(t, e));
  logits(2, 3) = std::numeric_limits<float>::infinity();
  const auto infinite = route(given_relu<float>(4, 4), logits);
  CHECK(infinite.plan.invalid_tokens().empty());
  CHECK(infinite.plan.dense_weights()(2, 3) == std::numeric_limits<float>::infinity());
}

TEST_CASE("relu: padding, no tokens, one token", "[router][relu]") {
  const matrix<double> logits = matrix<double>::Ones(3, 2);
  const std::vector<std::uint8_t> mask{0, 1, 0};
  routing_context<double> context;
  context.token_mask = mask;
  const auto r = route(given_relu<double>(2, 2), logits, context);
  CHECK(r.plan.size() == 2);
  CHECK(r.plan.of_token(1).size() == 2);
  CHECK(route(given_relu<double>(2, 2), matrix<double>(0, 2)).plan.size() == 0);
  CHECK(route(given_relu<double>(2, 2), matrix<double>(logits.topRows(1))).plan.size() == 2);
  CHECK(route(given_relu<double>(1, 1), matrix<double>(logits.leftCols(1))).plan.size() == 3);

  moe_layer layer{relu_router<double>{4, 3}, expert_bank<ffn<double>>{3, 4, 5}, relu_l1<fixed_l1>{1, {1.0}}};
  initialize(layer, 51);
  decltype(layer)::tape tape;
  matrix<double> none(0, 4);
  layer.forward(none, none, tape);
  layer.backward(none, none, tape);
  CHECK(tape.loss() == 0);
}

TEST_CASE("relu: there is no k to ask for", "[router][relu]") {
  routing_context<double> context;
  context.top_k = 3;
  CHECK_THROWS_WITH(route(given_relu<double>(4, 4), test::fixture_f<double>(), context),
                    Catch::Matchers::Contains("k = 3"));
}

TEST_CASE("relu: permuting tokens permutes outputs", "[router][relu]") {
  moe_layer layer{relu_router<float>{6, 4}, expert_bank<ffn<float>>{4, 6, 5}};
  initialize(layer, 61);
  const matrix<float> x = test::random_matrix<float>(17, 6, 62);
  const auto order = test::some_order(17);
  decltype(layer)::workspace workspace;
  matrix<float> y(17, 6), z(17, 6);
  layer.forward(x, y, workspace);
  layer.forward(test::permuted(x, order), z, workspace);
  CHECK(test::same_bits(z, test::permuted(y, order)));
  STATIC_REQUIRE(decltype(layer)::causal);
}

TEMPLATE_TEST_CASE("relu: equal bits for every thread count, and the readable reference", "[router][relu][determinism]",
                   float, double) {
  using S = TestType;
  moe_layer layer{relu_router<S>{12, 7}, expert_bank<ffn<S>>{7, 12, 9}, relu_l1<fixed_l1>{2, {0.1}}};
  initialize(layer, 71);
  routing_context<S> context;
  context.training = true;
  test::check_equal_bits(layer, 131, context);
  const auto d = test::difference_from_reference(layer, test::random_matrix<S>(40, 12, 72));
  CHECK(d.magnitude > S(0.1));
  CHECK(d.difference <= test::bound<S>(12 + 9 + 7, d.magnitude));
}

TEST_CASE("relu: the controller brings the number of experts to its target", "[router][relu][slow]") {
  // Plain gradient descent on the penalty alone, from a dense start of about 4 of 8 experts a token. Tokens have a
  // mean, as they do in a model: a gate without bias needs one to become negative on most of them.
  moe_layer layer{relu_router<float>{16, 8}, expert_bank<ffn<float>>{8, 16, 4},
                  relu_l1{2, adaptive_l1<float>{8, 2, {.initial = 1e-6}}}};
  initialize(layer, 81);
  const matrix<float> x = test::random_matrix<float>(256, 16, 82).array() + 0.5F;
  const matrix<float> dy = matrix<float>::Zero(256, 16);
  decltype(layer)::tape tape;
  matrix<float> y(256, 16), dx(256, 16);
  double first = 0;
  double last = 0;
  double largest = 0;
  for (int step = 0; step < 120; ++step) {
    zero_gradients(layer);
    layer.forward(x, y, tape);
    layer.backward(dy, dx, tape);
    last = tape.statistics.experts_per_token();
    if (step == 0) first = last;
    largest = std::max(largest, layer.loss<0>().coefficient().value());
    auto& gate = layer.router().gate().weight();
    for (index_t i = 0; i < gate.size(); ++i) gate.data()[i] -= 0.1F * gate.gradient()[std::size_t(i)];
    layer.after_step(tape);
  }
  CHECK(first > 3);
  CHECK(last < 2.5);
  CHECK(largest > 1e-2);  // it had to climb from 1e-6
  CHECK(tape.statistics.tokens == 0);
}
