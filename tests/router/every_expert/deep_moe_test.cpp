#include <sluice/router/every_expert/deep_moe.hpp>

#include <sluice/expert/activated.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/sequence.hpp>
#include <sluice/train/check_gate.hpp>
#include <sluice/train/conformance.hpp>
#include <sluice/train/initialize.hpp>

#include <limits>

#include "../../io/messages.hpp"
#include "router/any_router.hpp"
#include "router/router_table.hpp"
#include "support.hpp"

using namespace sluice;

namespace {

const test::table_router deep_moe_in_table("deep_moe_router", [] {
  return test::made(deep_moe_router<double>{6, 4, {.hidden = 5, .margin = 0.25}});
});

/// Logits for chosen shares: the gate's input is their logarithm.
using shares_gate = margin_gate<linear_gate<double>>;
shares_gate gate_of_shares(index_t experts, double margin) {
  shares_gate gate(linear_gate<double>(experts, experts), margin);
  gate.inner().weight().map().setIdentity();
  return gate;
}

/// The shares that a training call gives to every token.
matrix<double> shares_of(const shares_gate& gate, const matrix<double>& shares, shares_gate::tape& tape,
                         bool training = true) {
  routing_context<double> context;
  context.training = training;
  const matrix<double> x = shares.array().log();
  matrix<double> logits(x.rows(), x.cols());
  gate.forward(x, context, logits, tape);
  matrix<double> out = logits.unaryExpr([](double v) { return std::exp(v); });  // exactly 0 of -infinity
  for (index_t t = 0; t < out.rows(); ++t) out.row(t) /= out.row(t).sum();
  return out;
}

}  // namespace

TEST_CASE("deep_moe_router: keeps every promise", "[router][deep_moe]") {
  deep_moe_router<double> router(6, 3, {.hidden = 5, .margin = 0.25});
  initialize(router, 1);
  const auto report = test::conformance(router);
  INFO(report.describe());
  CHECK(report.passed());
}

TEST_CASE("margin_gate: an expert that is ahead by more than the margin is closed, token after token",
          "[router][deep_moe]") {
  // Three tokens with shares (.7, .2, .1), margin .5. Ahead of the mean before each: (0, 0, 0); (.7 - 1/3, ...) =
  // (.367, -.133, -.233); (.733, ...): the first is closed for the third token, and its mass goes to the others.
  const auto gate = gate_of_shares(3, 0.5);
  matrix<double> shares(3, 3);
  shares << .7, .2, .1, .7, .2, .1, .7, .2, .1;
  shares_gate::tape tape;
  const matrix<double> out = shares_of(gate, shares, tape);
  matrix<double> expected = shares;
  expected.row(2) << 0, 2 / 3., 1 / 3.;
  CHECK(test::largest_difference(out, expected) <= test::bound<double>(3));
  CHECK(out(2, 0) == 0);
  const double ahead[] = {1.4 - 1, 0.4 + 2 / 3. - 1, 0.2 + 1 / 3. - 1};
  for (index_t e = 0; e < 3; ++e) CHECK(std::abs(tape.ahead[e] - ahead[e]) <= test::bound<double>(6));
  CHECK(test::largest_difference(shares_of(gate, shares, tape, false), shares) <= test::bound<double>(3));
  auto free = gate;
  free.set_margin(std::numeric_limits<double>::infinity());
  CHECK(test::largest_difference(shares_of(free, shares, tape), shares) <= test::bound<double>(3));
}

TEST_CASE("margin_gate: goes on where the last step ended, and nobody gets further than margin + 1",
          "[router][deep_moe]") {
  auto gate = gate_of_shares(4, 0.25);
  matrix<double> shares(5, 4);
  for (index_t t = 0; t < 5; ++t) shares.row(t) << .85, .05, .05, .05;
  matrix<double> total = matrix<double>::Zero(1, 4);
  for (int step = 0; step < 20; ++step) {
    shares_gate::tape tape;
    total += shares_of(gate, shares, tape).colwise().sum();
    gate.after_step({}, tape);
    CHECK(total.maxCoeff() - total.mean() <= 0.25 + 1);
    for (index_t e = 0; e < 4; ++e)
      CHECK(std::abs(gate.ahead().data()[e] - (total(0, e) - total.mean())) <= test::bound<double>(400));
  }
}

TEST_CASE("margin_gate: padding and NaN are passed by, a margin is not negative", "[router][deep_moe][nan]") {
  const auto gate = gate_of_shares(2, 0);
  matrix<double> x(4, 2);
  x << 5, 0, quiet_nan<double>(), 0, 5, 0, 0, 0;
  const std::vector<std::uint8_t> mask{0, 1, 1, 1};
  routing_context<double> context;
  context.training = true;
  context.token_mask = mask;
  shares_gate::tape tape;
  matrix<double> logits(4, 2);
  gate.forward(x, context, logits, tape);
  CHECK(logits(2, 0) == 5);                                         // the first that counts
  CHECK(logits(3, 0) == -std::numeric_limits<double>::infinity());  // the second
  CHECK_THROWS_WITH(gate_of_shares(2, -1), test::contains("-1"));
  CHECK_THROWS_AS(gate_of_shares(2, quiet_nan<double>()), std::invalid_argument);
  CHECK(gate_of_shares(2, std::numeric_limits<double>::infinity()).experts() == 2);  // no constraint
}

TEST_CASE("deep_moe: gates that are sure make two layers a path of one expert each", "[router][deep_moe]") {
  deep_moe_router<double> router(4, 3, {.hidden = 2});
  moe_layer layer{router, expert_bank<activated_expert<double>>{3, 4, 4}};
  sequence model{layer, layer};
  initialize(model, 5);
  auto& first = model.layer<0>();
  auto& second = model.layer<1>();
  // relu(U1 u) > 0 for positive tokens, and one expert's row of U2 is far above the others.
  const auto decide = [](auto& one, index_t expert) {
    one.router().gate().inner().weight1().map().setConstant(1);
    one.router().gate().inner().weight2().fill([&](index_t i) { return i / 2 == expert ? 1e3 : -1e3; });
  };
  decide(first, 2);
  decide(second, 1);
  first.bank().expert(2).bias().map().setConstant(3);  // what the second gate reads is positive
  const matrix<double> x = test::random_matrix<double>(5, 4, 2).cwiseAbs();
  matrix<double> y(5, 4);
  decltype(model)::workspace workspace;
  model.forward(x, y, workspace);
  const auto apply = [](auto& expert, const matrix<double>& in) {
    matrix<double> out = in * expert.weight().map().transpose();
    out.rowwise() += expert.bias().map().col(0).transpose();
    return matrix<double>(out.cwiseMax(0.0));
  };
  const matrix<double> path = apply(second.bank().expert(1), apply(first.bank().expert(2), x));
  CHECK(test::largest_difference(y, path) <= test::bound<double>(16, path.cwiseAbs().maxCoeff()));
}

TEST_CASE("activated_expert: keeps every promise", "[router][deep_moe][expert]") {
  const auto smooth = check_expert(activated_expert<double, silu>{5, 3});
  INFO(smooth.describe());
  CHECK(smooth.passed());
  CHECK_THROWS_WITH((activated_expert<double>{0, 3}), test::contains("0"));
}
