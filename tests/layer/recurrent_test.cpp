#include <sluice/layer/recurrent.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/linear.hpp>
#include <sluice/gate/recurrent.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/loss/importance.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/check_gate.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "../io/messages.hpp"
#include "../support.hpp"

using namespace sluice;

namespace {

using rethinking_router = top_k_router<double, dynamic, dynamic, recurrent_gate<double>>;
using rethinking_bank = expert_bank<ffn<double, silu>>;

auto rethinking(index_t rounds) {
  recurrent_layer layer{moe_layer{rethinking_router{recurrent_gate<double>(6, 4, 5), {.top_k = 2}},
                                  rethinking_bank{4, 6, 3}, importance_loss{.coefficient = 0.1}},
                        {.rounds = rounds}};
  initialize(layer, 3);
  return layer;
}

}  // namespace

TEST_CASE("recurrent_gate: keeps every promise, with a state and without", "[layer][recurrent][gate]") {
  recurrent_gate<double> gate(6, 4, 5);
  initialize(gate, 2);
  const auto plain = check_gate(gate);
  INFO(plain.describe());
  CHECK(plain.passed());
  const matrix<double> state = test::random_matrix<double>(37, 5, 9);
  routing_context<double> context;
  context.features = state;
  const auto again = check_gate(gate, {.tokens = 37, .context = context});
  INFO(again.describe());
  CHECK(again.passed());
}

TEST_CASE("recurrent_gate: one number by hand", "[layer][recurrent][gate]") {
  recurrent_gate<double> gate(1, 1, 1);
  // a = x (1, 2, 3), c = h (1, -1, 0.5), no biases; logits = 2 h'
  const double w[] = {1, 2, 3}, u[] = {1, -1, 0.5};
  gate.input_weight().fill([&](index_t i) { return w[i]; });
  gate.state_weight().fill([&](index_t i) { return u[i]; });
  gate.output_weight().fill([](index_t) { return 2.0; });
  const matrix<double> x = matrix<double>::Constant(1, 1, 0.5), h = matrix<double>::Constant(1, 1, 0.25);
  routing_context<double> context;
  context.features = h;
  recurrent_gate<double>::tape tape;
  matrix<double> logits(1, 1);
  gate.forward(x, context, logits, tape);
  const auto sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };
  const double r = sigmoid(0.5 + 0.25), z = sigmoid(1 - 0.25), n = std::tanh(1.5 + r * 0.125);
  CHECK(std::abs(logits(0, 0) - 2 * ((1 - z) * n + z * 0.25)) <= test::bound<double>(8));
}

TEST_CASE("recurrent_layer: keeps every promise, through all rounds", "[layer][recurrent]") {
  const auto report = check_layer(rethinking(3));
  INFO(report.describe());
  CHECK(report.passed());
}

TEST_CASE("recurrent_layer: one round is the layer, from a state of zero", "[layer][recurrent]") {
  const auto layer = rethinking(1);
  const matrix<double> x = test::random_matrix<double>(7, 6, 2);
  matrix<double> y(7, 6), own(7, 6);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  std::remove_cvref_t<decltype(layer.layer())>::workspace other;
  layer.layer().forward(x, own, other);
  CHECK(test::same_bits(y, own));
}

TEST_CASE("recurrent_layer: a round reads x and what the round before made, and its router the state",
          "[layer][recurrent]") {
  const auto layer = rethinking(2);
  const matrix<double> x = test::random_matrix<double>(7, 6, 2);
  matrix<double> y(7, 6), first(7, 6), second(7, 6);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  std::remove_cvref_t<decltype(layer.layer())>::workspace a, b;
  layer.layer().forward(x, first, a);
  routing_context<double> context;
  const matrix<double> state = a.router.gate.state.map();
  context.features = state;
  layer.layer().forward(x + first, second, b, context);
  CHECK(test::same_bits(y, second));
  matrix<double> in_place = x;
  layer.forward(in_place, in_place, workspace);
  CHECK(test::same_bits(in_place, second));
}

TEST_CASE("recurrent_layer: what does not fit is refused", "[layer][recurrent]") {
  CHECK_THROWS_WITH(rethinking(0), test::contains("not 0"));
  const rethinking_router router{recurrent_gate<double>(6, 4, 5), {.top_k = 2}};
  CHECK_THROWS_WITH((recurrent_layer{moe_layer{router, expert_bank<linear_expert<double>>(4, index_t(6), index_t(3))}}),
                    test::contains("6 -> 3"));
  recurrent_gate<double> gate(6, 4, 5);
  initialize(gate, 1);
  const matrix<double> x = test::random_matrix<double>(3, 6, 1), h = test::random_matrix<double>(3, 4, 1);
  routing_context<double> context;
  context.features = h;
  recurrent_gate<double>::tape tape;
  matrix<double> logits(3, 4);
  CHECK_THROWS_WITH(gate.forward(x, context, logits, tape), test::contains("features has 4"));
  CHECK_THROWS_WITH(recurrent_gate<double>(6, 4, 0), test::contains("and 0"));
}
