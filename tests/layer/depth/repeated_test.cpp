#include <sluice/layer/depth/repeated.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/layer/depth/loss_over_rounds.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/layer/sequence.hpp>
#include <sluice/loss/entropy.hpp>
#include <sluice/router/tokens_choose/sigmoid_top_k.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "../../io/messages.hpp"
#include "../../layer/plain_checks.hpp"

using namespace sluice;

namespace {

using taking_turns = residual_layer<moe_layer<sigmoid_router<double>, expert_bank<ffn<double, silu>>>>;

taking_turns one_of_turns(double dropout = 0) {
  return taking_turns(moe_layer{
      sigmoid_router<double>(6, 4, {.renormalize = false, .selection_bias = false, .expert_dropout = dropout}),
      expert_bank<ffn<double, silu>>(4, index_t(6), index_t(5))});
}
repeated_layers<taking_turns> turns(index_t rounds, double dropout = 0) {
  repeated_layers stack{std::vector{one_of_turns(dropout), one_of_turns(dropout)}, {.rounds = rounds}};
  initialize(stack, 3);
  return stack;
}

auto& routing_of_turn(taking_turns::tape& round) { return round.layer; }

/// -H of the mean over rounds and tokens of the softmax of what layer g's router saw, mean over sequences.
double naive_balance(const repeated_layers<taking_turns>::tape& t, index_t g, std::span<const index_t> borders) {
  double sum = 0;
  const auto sequences = static_cast<index_t>(borders.size()) - 1;
  for (index_t s = 0; s < sequences; ++s) {
    Eigen::RowVectorXd mean = Eigen::RowVectorXd::Zero(4);
    double count = 0;
    for (std::size_t i = as_size(g); i < t.rounds.size(); i += 2)
      for (index_t token = borders[as_size(s)]; token < borders[as_size(s + 1)]; ++token, ++count) {
        const Eigen::RowVectorXd e = t.rounds[i].layer.router.seen.clean.map().row(token).array().exp();
        mean += e / e.sum();
      }
    mean /= count;
    sum += (mean.array() * mean.array().log()).sum() / static_cast<double>(sequences);
  }
  return sum;
}

}  // namespace

static_assert(TrainableLayer<repeated_layers<taking_turns>> && is_causal<repeated_layers<taking_turns>>);

TEST_CASE("repeated_layers: every promise of a layer", "[layer][repeated][conformance]") {
  for (const index_t rounds : {1, 3}) {
    const auto report = check_layer(turns(rounds, 0.2), {.seed = 5});
    INFO(report.describe());
    CHECK(report.passed());
    CHECK(report.find("gradients")->result == outcome::passed);
  }
}

TEST_CASE("repeated_layers: a shared layer's gradient is the sum of the unrolled copies'", "[layer][repeated]") {
  auto stack = turns(2);
  sequence unrolled{stack.layer(0), stack.layer(1), stack.layer(0), stack.layer(1)};
  const matrix<double> x = test::random_matrix<double>(9, 6, 1), dy = test::random_matrix<double>(9, 6, 2);
  const auto shared = test::train_once(stack, x, dy);
  const auto apart = test::train_once(unrolled, x, dy);
  CHECK(test::same_bits(shared.y, apart.y));
  CHECK(test::same_bits(shared.dx, apart.dx));
  REQUIRE(2 * shared.gradients.size() == apart.gradients.size());
  for (std::size_t i = 0; i < shared.gradients.size(); ++i)
    CHECK(test::largest_difference(shared.gradients[i],
                                   matrix<double>(apart.gradients[i] + apart.gradients[i + shared.gradients.size()])) <
          test::bound<double>(9, 8));
  std::vector<std::string> names;
  for_each_parameter(stack, [&](const std::string& name, const auto&) { names.push_back(name); });
  CHECK(names.size() == shared.gradients.size());
  CHECK(names.front() == "0.layer.router.gate.weight");
}

TEST_CASE("repeated_layers: rounds draw apart and the same step draws the same", "[layer][repeated]") {
  const auto stack = turns(2, 0.5);
  const matrix<double> x = test::random_matrix<double>(20, 6, 1);
  matrix<double> y(20, 6), again(20, 6);
  repeated_layers<taking_turns>::tape tape;
  stack.forward(x, y, tape, {.training = true, .random = random_source{5}});
  // Where nothing is left out every expert of the choice is there: sizes tell the draws apart.
  CHECK(!test::same_bits(tape.rounds[0].layer.plan.dense_weights(), tape.rounds[2].layer.plan.dense_weights()));
  const auto left_out = [&](std::size_t i) {
    std::vector<index_t> counts;
    for (index_t t = 0; t < 20; ++t)
      counts.push_back(static_cast<index_t>(tape.rounds[i].layer.plan.of_token(t).size()));
    return counts;
  };
  CHECK(left_out(0) != left_out(2));
  stack.forward(x, again, tape, {.training = true, .random = random_source{5}});
  CHECK(test::same_bits(y, again));
}

TEST_CASE("repeated_layers: what makes no sense is refused", "[layer][repeated]") {
  CHECK_THROWS_WITH(turns(0), test::contains("not 2 and 0"));
  CHECK_THROWS_WITH(repeated_layers<taking_turns>(std::vector<taking_turns>{}), test::contains("not 0 and 2"));
  auto stack = turns(2);
  repeated_layers<taking_turns>::tape tape;
  matrix<double> dy(3, 6), dx(3, 6);
  CHECK_THROWS_WITH(stack.backward(dy, dx, tape), test::contains("backward needs a training forward call"));
}

TEST_CASE("loss_over_rounds: the entropy of all rounds together", "[layer][repeated][loss]") {
  auto stack = turns(3);
  const matrix<double> x = test::random_matrix<double>(9, 6, 1);
  const std::vector<index_t> borders{0, 4, 9};
  const routing_context<double> context{.training = true, .groups = borders};
  loss_over_rounds<double, entropy_loss> balance(entropy_loss{.coefficient = 0.5});
  const auto value_of = [&](repeated_layers<taking_turns>::tape& t) {
    matrix<double> y(9, 6);
    stack.forward(x, y, t, context);
    return balance(t, 2, 1, routing_of_turn, context);
  };
  repeated_layers<taking_turns>::tape tape;
  const double value = value_of(tape);
  CHECK(value == Approx(0.5 * naive_balance(tape, 1, borders)).epsilon(1e-12));

  zero_gradients(stack);
  matrix<double> dx(9, 6);
  stack.backward(matrix<double>::Zero(9, 6), dx, tape);
  auto& weight = stack.layer(1).router().gate().weight();
  repeated_layers<taking_turns>::tape other;
  for (const index_t i : {0, 7, 13, 23}) {
    const double slope = test::slope_at(weight.value()[as_size(i)], [&] { return value_of(other); });
    CHECK(weight.gradient()[as_size(i)] == Approx(slope).margin(1e-8));
  }
  // It reaches the layers before, too: their outputs are what the routers of later rounds read.
  CHECK(stack.layer(0).bank().expert(0).up().gradient_matrix().cwiseAbs().maxCoeff() > 1e-8);
}

TEST_CASE("loss_over_rounds: hidden tokens do not count and wrong places are refused", "[layer][repeated][loss]") {
  auto stack = turns(2);
  matrix<double> x = test::random_matrix<double>(9, 6, 1), y(9, 6);
  x(4, 0) = quiet_nan<double>();
  matrix<double> without(8, 6), y8(8, 6);
  without << x.topRows(4), x.bottomRows(4);
  loss_over_rounds<double, entropy_loss> balance(entropy_loss{.coefficient = 1});
  repeated_layers<taking_turns>::tape tape, short_tape;
  stack.forward(x, y, tape);
  stack.forward(without, y8, short_tape);
  routing_context<double> context;
  CHECK(balance(tape, 2, 0, routing_of_turn, context) ==
        Approx(balance(short_tape, 2, 0, routing_of_turn, context)).epsilon(1e-12));
  CHECK_THROWS_WITH(balance(tape, 3, 0, routing_of_turn, context), test::contains("4 applications"));
  CHECK_THROWS_WITH(balance(tape, 2, 2, routing_of_turn, context), test::contains("a layer 2 of 2"));
}
