#include <sluice/gate/frozen.hpp>

#include <sluice/gate/cosine.hpp>
#include <sluice/gate/random.hpp>
#include <sluice/train/sgd.hpp>

#include "gate_check.hpp"

using namespace sluice;

TEST_CASE("frozen_gate: scores and dx are those of the gate inside, its parameters have no gradient",
          "[gate][gradient]") {
  linear_gate<double> plain(5, 4, {.bias = true});
  initialize(plain, 3);
  frozen_gate gate{plain};
  const matrix<double> x = test::random_matrix<double>(7, 5, 4), dlogits = test::random_matrix<double>(7, 4, 5);
  CHECK(test::score(gate, x) == test::score(plain, x));
  linear_gate<double>::tape tape;
  frozen_gate<linear_gate<double>>::tape frozen;
  const matrix<double> dx = test::pull_back(plain, x, dlogits, test::training_context<double>(), tape);
  CHECK(test::pull_back(gate, x, dlogits, test::training_context<double>(), frozen) == dx);
  index_t seen = 0;
  for_each_parameter(gate, [&](const std::string& name, parameter<double>& p) {
    CHECK((name == "weight" || name == "bias"));
    CHECK_FALSE(p.is_learned());
    for (const double g : p.gradient()) CHECK(g == 0);
    ++seen;
  });
  CHECK(seen == 2);

  sgd<double> optimizer({.learning_rate = 0.5, .weight_decay = 0.5});
  const frozen_gate before = gate;
  optimizer.step(gate);
  CHECK(test::score(gate, x) == test::score(before, x));
}

TEST_CASE("frozen_gate: keeps every promise of a gate", "[gate]") {
  test::check_gate_promises(frozen_gate<linear_gate<double>>(6, 4), 8);
  frozen_gate<cosine_gate<double>> cosine(6, 4);
  initialize(cosine, 2);
  const auto report = test::check_gate(cosine, test::random_matrix<double>(4, 6, 4), 5, test::training_context<double>());
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
  CHECK(report.checked == 24);  // x alone
}

TEST_CASE("random_gate: draws of its own for every pair, whatever the token", "[gate]") {
  const random_gate<double> gate(2, 3);
  const matrix<double> x = matrix<double>::Zero(400, 2);
  const matrix<double> logits = test::score(gate, x, test::training_context<double>(1));
  CHECK(test::score(gate, x, test::training_context<double>(1)) == logits);
  CHECK(test::score(gate, x, test::training_context<double>(2)) != logits);
  CHECK((logits.array() > 0).all());
  CHECK((logits.array() < 1).all());
  const double deviation = std::sqrt(1.0 / 12 / 1200);
  CHECK(std::abs(logits.mean() - 0.5) < 5 * deviation);
  CHECK_THROWS_AS(random_gate<double>(2, 0), std::invalid_argument);
}
