#include <sluice/gate/residual.hpp>

#include <sluice/gate/standardized.hpp>
#include <sluice/gate/two_layer.hpp>

#include "gate_check.hpp"

using namespace sluice;

namespace {

using gate_type = residual_gate<two_layer_gate<double>>;

gate_type initialized(gate_type gate, std::uint64_t seed) {
  initialize(gate, seed);
  return gate;
}

}  // namespace

TEST_CASE("residual_gate: adds the previous logits times R transposed", "[gate]") {
  residual_gate<linear_gate<double>> gate(2, 2);
  gate.inner().weight().map() << 1, 0, 0, 1;
  gate.residual().map() << 1, 2, 3, 4;
  matrix<double> x(1, 2), previous(1, 2);
  x << 10, 20;
  previous << 0.5, -1;
  routing_context<double> context;
  context.previous_logits = previous;
  // R g = (0.5 - 2, 1.5 - 4).
  const matrix<double> logits = test::score(gate, x, context);
  CHECK(logits(0, 0) == 8.5);
  CHECK(logits(0, 1) == 17.5);
}

TEST_CASE("residual_gate: R of zeros is the inner gate", "[gate]") {
  auto gate = initialized(gate_type(4, 5), 61);
  std::fill(gate.residual().value().begin(), gate.residual().value().end(), 0.0);
  const matrix<double> x = test::random_matrix<double>(6, 4, 62);
  const matrix<double> previous = test::random_matrix<double>(6, 5, 63);
  routing_context<double> context;
  context.previous_logits = previous;
  CHECK(test::score(gate, x, context) == test::score(gate.inner(), x));
}

TEST_CASE("residual_gate: gradients, also of the previous logits, equal central differences", "[gate][gradient]") {
  auto gate = initialized(gate_type(4, 5, {.optional = true}), 65);
  const matrix<double> x = test::random_matrix<double>(6, 4, 66);
  matrix<double> previous = test::random_matrix<double>(6, 5, 67);
  auto context = test::training_context<double>();
  context.previous_logits = previous;
  gate_type::tape tape;
  test::pull_back(gate, x, test::random_matrix<double>(6, 5, 68), context, tape);
  const matrix<double> dprevious = tape.previous_logits_gradient().map();
  const auto report =
      test::check_gate(gate, x, 68, context, {{"previous_logits", test::span_of(previous), test::span_of(dprevious)}});
  INFO(report.describe());
  CHECK(report.checked == 30 + 24 + 40 * 4 + 40 * 5 + 25);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("residual_gate: missing or misfitting previous logits are told apart", "[gate]") {
  const auto gate = initialized(gate_type(4, 5), 69);
  const matrix<double> x = test::random_matrix<double>(6, 4, 70);
  CHECK_THROWS_WITH(test::score(gate, x), Catch::Matchers::Contains("previous_logits [T, E] = [6, 5]"));
  const matrix<double> narrow = matrix<double>::Zero(6, 4);
  const matrix<double> few = matrix<double>::Zero(5, 5);
  routing_context<double> context;
  context.previous_logits = narrow;
  CHECK_THROWS_WITH(test::score(gate, x, context), Catch::Matchers::Contains("not [6, 4]"));
  context.previous_logits = few;
  CHECK_THROWS_AS(test::score(gate, x, context), std::invalid_argument);
}

TEST_CASE("residual_gate: a first layer may go without", "[gate]") {
  auto gate = initialized(gate_type(4, 5, {.optional = true}), 71);
  const matrix<double> x = test::random_matrix<double>(6, 4, 72);
  CHECK(test::same_bits(test::score(gate, x), test::score(gate.inner(), x)));
  gate_type::tape tape;
  const matrix<double> dlogits = test::random_matrix<double>(6, 5, 73);
  // A gradient of an earlier call does not linger.
  const matrix<double> previous = test::random_matrix<double>(6, 5, 74);
  auto context = test::training_context<double>();
  context.previous_logits = previous;
  test::pull_back(gate, x, dlogits, context, tape);
  CHECK(tape.previous_logits_gradient().rows() == 6);
  test::pull_back(gate, x, dlogits, test::training_context<double>(), tape);
  CHECK(tape.previous_logits_gradient().empty());
  CHECK(gate.residual().gradient_map().isZero(0));
}

TEMPLATE_TEST_CASE("residual_gate: executors, NaN, no tokens", "[gate]", float, double) {
  // The checks come without previous logits; the next case compares executors with them.
  residual_gate<linear_gate<TestType>> gate(13, 37, {.optional = true});
  initialize(gate, 75);
  test::check_gate_promises(gate, 76);
}

TEST_CASE("residual_gate: equal bits for every executor with previous logits", "[gate][determinism]") {
  residual_gate<linear_gate<float>> gate(13, 37);
  initialize(gate, 77);
  const matrix<float> x = test::random_matrix<float>(77, 13, 78);
  const matrix<float> previous = test::random_matrix<float>(77, 37, 79);
  const matrix<float> dlogits = test::random_matrix<float>(77, 37, 80);
  auto context = test::training_context<float>();
  context.previous_logits = previous;
  residual_gate<linear_gate<float>>::tape tape;
  const matrix<float> logits = test::score(gate, x, context);
  test::pull_back(gate, x, dlogits, context, tape);
  const matrix<float> dprevious = tape.previous_logits_gradient().map();
  const matrix<float> dresidual = gate.residual().gradient_map();
  for (const int threads : {1, 2, 3, 8}) {
    test::shuffled_threads pool(threads);
    context.executor = pool;
    CHECK(test::same_bits(test::score(gate, x, context), logits));
    test::pull_back(gate, x, dlogits, context, tape);
    CHECK(test::same_bits(matrix<float>(tape.previous_logits_gradient().map()), dprevious));
    CHECK(test::same_bits(matrix<float>(gate.residual().gradient_map()), dresidual));
  }
}

TEST_CASE("residual_gate: parameters keep the inner gate's names", "[gate]") {
  standardized_gate<gate_type> gate(4, 5);
  std::vector<std::string> names;
  for_each_parameter(gate, [&](const std::string& name, const auto&) { names.push_back(name); });
  CHECK(names == std::vector<std::string>{"weight1", "weight2", "residual"});
}

TEST_CASE("residual_gate: NaN among a token's previous logits makes its logits NaN and reaches no gradient", "[gate]") {
  auto gate = initialized(gate_type(4, 5), 65);
  const matrix<double> x = test::random_matrix<double>(6, 4, 66);
  matrix<double> previous = test::random_matrix<double>(6, 5, 67);
  previous(2, 3) = quiet_nan<double>();
  routing_context<double> context;
  context.previous_logits = previous;
  const matrix<double> logits = test::score(gate, x, context);
  for (index_t t = 0; t < 6; ++t) CHECK(any_nan(&logits(t, 0), 5) == (t == 2));
  matrix<double> dlogits = test::random_matrix<double>(6, 5, 68);
  dlogits.row(2).setZero();  // as for every invalid token
  gate_type::tape tape;
  zero_gradients(gate);
  test::pull_back(gate, x, dlogits, context, tape);
  for_each_parameter(gate, [&](const std::string&, parameter<double>& p) {
    CHECK_FALSE(any_nan(p.gradient().data(), static_cast<index_t>(p.gradient().size())));
  });
  CHECK(tape.previous_logits_gradient().map().row(2).isZero(0));
}
