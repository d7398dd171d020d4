#include <sluice/loss/cluster_variance.hpp>

#include <sluice/core/sparse_plan.hpp>
#include <sluice/gate/cluster_dropout.hpp>

#include "../gate/gate_check.hpp"
#include "../io/messages.hpp"

using namespace sluice;

namespace {

double cluster_value(const cluster_variance& loss, const matrix<double>& logits, matrix<double>* gradient = nullptr,
                     const routing_context<double>& context = {}) {
  score_signals<double> seen;
  seen.clean.resize(logits.rows(), logits.cols());
  seen.clean.map() = logits;
  score_gradients<double> gradients;
  gradients.zero_like(seen);
  const double value = loss(seen, sparse_plan<double>(), context, gradients);
  if (gradient != nullptr) *gradient = gradients.clean.map();
  return value;
}

}  // namespace

TEST_CASE("cluster_variance: by hand, and nothing for clusters of equal experts", "[loss][cluster_variance]") {
  matrix<double> logits(1, 4);
  logits << std::log(.1), std::log(.3), std::log(.4), std::log(.2);  // within: .01 and .01, means .2 and .3
  CHECK(std::abs(cluster_value({.coefficient = 3, .cluster = 2}, logits) - 3 * .01) <= test::bound<double>(4));
  CHECK(std::abs(cluster_value({.coefficient = 1, .cluster = 2, .between = 2}, logits) - (.01 - 2 * .0025)) <=
        test::bound<double>(4));
  logits << 1, 1, -2, -2;
  CHECK(std::abs(cluster_value({.coefficient = 1, .cluster = 2}, logits)) <= test::bound<double>(4));
  CHECK(cluster_value({.coefficient = 1, .cluster = 1}, logits) == 0);
  CHECK(cluster_value({.coefficient = 1, .cluster = 2}, matrix<double>(0, 4)) == 0);
  CHECK_THROWS_WITH(cluster_value({.coefficient = 1, .cluster = 3}, logits), test::contains("E = 4") && test::contains("of 3"));
}

TEST_CASE("cluster_variance: gradients equal central differences, over groups and padding", "[loss][cluster_variance][gradient]") {
  matrix<double> logits = test::random_matrix<double>(7, 6, 3);
  const std::vector<index_t> groups{0, 3, 7};
  const std::vector<std::uint8_t> mask{1, 1, 0, 1, 1, 1, 1};
  routing_context<double> context;
  context.groups = groups;
  context.token_mask = mask;
  const cluster_variance loss{.coefficient = 2, .cluster = 3, .between = 0.5};
  matrix<double> gradient;
  cluster_value(loss, logits, &gradient, context);
  constexpr double h = 1e-6;
  for (index_t i = 0; i < logits.size(); ++i) {
    const double at = logits.data()[i];
    logits.data()[i] = at + h;
    const double up = cluster_value(loss, logits, nullptr, context);
    logits.data()[i] = at - h;
    const double down = cluster_value(loss, logits, nullptr, context);
    logits.data()[i] = at;
    CHECK(std::abs((up - down) / (2 * h) - gradient.data()[i]) <= 1e-8);  // differences of numbers of order 1: eps / h
  }
}

TEST_CASE("cluster_dropout_gate: no cluster is ever gone, and about as many are out as was asked", "[gate][cluster_dropout]") {
  const linear_gate<double> inner(2, 6);
  const matrix<double> x = matrix<double>::Ones(1, 2);
  index_t out = 0;
  for (std::uint64_t seed = 0; seed < 500; ++seed) {
    const matrix<double> logits =
        test::score(cluster_dropout_gate{inner, {.cluster = 3, .rate = 0.5}}, x, test::training_context<double>(seed));
    index_t left[2] = {0, 0};
    for (index_t e = 0; e < 6; ++e) left[e / 3] += logits(0, e) == 0;
    REQUIRE((left[0] > 0 && left[1] > 0));
    out += 6 - left[0] - left[1];
  }
  // Of three, 3/2 are out, but for 1/8 of the cases in which one comes back: 11/8 a cluster.
  CHECK(std::abs(static_cast<double>(out) / 1000 - 11.0 / 8) < 5 * std::sqrt(3.0 / 4 / 1000));
  const auto all_but_one = test::score(cluster_dropout_gate{inner, {.cluster = 3, .rate = 1}}, x, test::training_context<double>());
  CHECK((all_but_one.array() == 0).count() == 2);
  CHECK(test::score(cluster_dropout_gate{inner, {.cluster = 3, .rate = 1}}, x) == matrix<double>::Zero(1, 6));
  CHECK_THROWS_WITH((cluster_dropout_gate{inner, {.cluster = 4}}), test::contains("E = 6") && test::contains("of 4"));
  CHECK_THROWS_WITH((cluster_dropout_gate{inner, {.cluster = 3, .rate = 1.5}}), test::contains("rate of 1.5"));
}

TEST_CASE("cluster_dropout_gate: at rate 0 the gate inside, with every promise", "[gate][cluster_dropout]") {
  linear_gate<double> inner(5, 4, {.bias = true});
  initialize(inner, 3);
  const cluster_dropout_gate gate{inner, {.cluster = 2, .rate = 0}};
  const matrix<double> x = test::random_matrix<double>(7, 5, 4);
  CHECK(test::score(gate, x, test::training_context<double>()) == test::score(inner, x));
  test::check_gate_promises(gate, 8);
}
