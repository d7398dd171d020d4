#include <sluice/router/every_expert/dense_mixture.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/gate/activated.hpp>
#include <sluice/gate/tempered.hpp>
#include <sluice/gate/transformed.hpp>
#include <sluice/router/every_expert/dense_sigmoid.hpp>
#include <sluice/router/every_expert/dense_softmax.hpp>
#include <sluice/router/every_expert/gumbel_softmax.hpp>

#include "router/any_router.hpp"
#include "router/layer_checks.hpp"
#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

using namespace sluice;
using test::copy_gate;

namespace {

using any_mixture = test::any_router<double, dense_plan<double>>;

const test::table_router dense_sigmoid_in_table("dense_sigmoid_router", [] {
  return test::made(dense_sigmoid_router<double>{6, 4});
});
const test::table_router gumbel_softmax_in_table("gumbel_softmax_router", [] {
  return test::made(gumbel_softmax_router<double>{6, 4, {.samples = 3}});
});

/// Weights of a user's own: l^2.
struct squared_logits {
  void weigh(const mixture_row<double>& row, double* w) const {
    for (index_t e = 0; e < row.experts; ++e) w[e] = row.logits[e] * row.logits[e];
  }
  void backward(const mixture_row<double>& row, const double*, const double* dw, double* dlogits) const {
    for (index_t e = 0; e < row.experts; ++e) dlogits[e] += 2 * row.logits[e] * dw[e];
  }
};

template <typename Router>
matrix<double> mixture_weights(const Router& router, const matrix<double>& x,
                               const routing_context<double>& context = {}) {
  return test::route(router, x, context).plan.dense_weights();
}

/// A layer of small experts whose router has forgotten its type, against central differences.
void check_mixture_gradients(const any_mixture& router, const routing_context<double>& context) {
  moe_layer layer{router, expert_bank<ffn<double, gelu>>{router.experts(), router.inputs(), 3}};
  initialize(layer, 21);
  const auto report = test::layer_gradients(layer, test::random_matrix<double>(9, router.inputs(), 22), context);
  INFO(report.describe());
  CHECK(report.checked > 100);
  CHECK(report.largest_error < test::gradient_tolerance);
}

}  // namespace

TEST_CASE("dense_mixture: weights of one's own are a function of a row of logits", "[router][dense_mixture]") {
  dense_mixture_router<linear_gate<double>, squared_logits> router(linear_gate<double>(5, 4));
  initialize(router, 1);
  const matrix<double> x = test::random_matrix<double>(6, 5, 2);
  const matrix<double> logits = x * router.gate().weight().to_matrix().transpose();
  CHECK(test::largest_difference(mixture_weights(router, x), matrix<double>(logits.cwiseProduct(logits))) <=
        test::bound<double>(5, 16.0));
  const auto report = test::conformance(router);
  INFO(report.describe());
  CHECK(report.passed());
  check_mixture_gradients(any_mixture(router), test::in_training());
}

TEST_CASE("dense_mixture: bad fits are refused with their numbers", "[router][dense_mixture]") {
  CHECK_THROWS_WITH((dense_mixture_router(linear_gate<double>(4, 3), gumbel_softmax_weights<double>(2, {}))),
                    test::contains("draws are for 2 experts, the router has E = 3"));
  CHECK_THROWS_WITH((gumbel_softmax_router<double>(4, 3, {.temperature = 0})),
                    test::contains("temperature > 0, not 0"));
  CHECK_THROWS_WITH((gumbel_softmax_router<double>(4, 3, {.samples = 0})), test::contains("E = 3 and 0"));
  routing_context<double> context;
  context.top_k = 2;
  CHECK_THROWS_WITH(mixture_weights(dense_sigmoid_router<double>(3, 3), matrix<double>::Zero(1, 3), context),
                    test::contains("all of E = 3 experts; the call asks for k = 2"));
}

TEST_CASE("dense_sigmoid: every expert is weighed on its own", "[router][dense_sigmoid]") {
  const dense_sigmoid_router<double, copy_gate<double>> router(3, 3);
  matrix<double> logits(2, 3), expected(2, 3);
  logits << 0, std::log(3), -std::log(4), HUGE_VAL, -HUGE_VAL, 0;
  expected << .5, .75, .2, 1, 0, .5;
  CHECK(test::largest_difference(mixture_weights(router, logits), expected) <= test::bound<double>(1));
  dense_sigmoid_router<double> learned(6, 3);
  initialize(learned, 1);
  const auto report = test::conformance(learned);
  INFO(report.describe());
  CHECK(report.passed());
  check_mixture_gradients(any_mixture(learned), {});
}

TEST_CASE("gumbel_softmax: training perturbs every row by its own draws, inference averages the router's",
          "[router][gumbel_softmax]") {
  const gumbel_softmax_router<double, copy_gate<double>> router(4, 4, {.temperature = 0.5, .samples = 3, .seed = 9});
  const matrix<double> logits = test::fixture_f<double>();
  const auto context = test::in_training(7);
  const auto softmax_of = [&](index_t t, auto noise) {
    std::vector<double> row;
    for (index_t e = 0; e < 4; ++e) row.push_back((logits(t, e) + noise(e)) / 0.5);
    return test::naive_softmax(row.data(), 4);
  };
  const matrix<double> trained = mixture_weights(router, logits, context), inferred = mixture_weights(router, logits);
  const auto& draws = router.weights().draws();
  for (index_t t = 0; t < 4; ++t) {
    const auto p = softmax_of(
        t, [&](index_t e) { return context.random.gumbel(gumbel_softmax_weights<double>::site, 4 * t + e); });
    for (index_t e = 0; e < 4; ++e) {
      double mean = 0;
      for (index_t m = 0; m < 3; ++m) mean += softmax_of(t, [&](index_t i) { return draws(m, i); })[as_size(e)] / 3;
      CHECK(std::abs(trained(t, e) - p[as_size(e)]) <= test::bound<double>(4));
      CHECK(std::abs(inferred(t, e) - mean) <= test::bound<double>(4));
    }
  }
  CHECK(test::same_bits(mixture_weights(router, logits), inferred));
}

TEST_CASE("gumbel_softmax: a high temperature makes weights even, a low one and many draws the softmax",
          "[router][gumbel_softmax]") {
  const matrix<double> logits = test::fixture_f<double>();
  const gumbel_softmax_router<double, copy_gate<double>> hot(4, 4, {.temperature = 1e9});
  CHECK(test::largest_difference(mixture_weights(hot, logits), matrix<double>::Constant(4, 4, .25)) < 1e-7);
  const index_t M = 20000;
  const gumbel_softmax_router<double, copy_gate<double>> cold(4, 4, {.temperature = 1e-4, .samples = M});
  const matrix<double> weights = mixture_weights(cold, logits);
  for (index_t t = 0; t < 4; ++t) {
    const auto p = test::naive_softmax(&logits(t, 0), 4);
    // Counts of M draws within five deviations of the binomial.
    for (index_t e = 0; e < 4; ++e)
      CHECK(std::abs(weights(t, e) - p[as_size(e)]) < 5 * std::sqrt(p[as_size(e)] * (1 - p[as_size(e)]) / M));
  }
}

TEST_CASE("gumbel_softmax: every promise of a router, and gradients in training and at inference",
          "[router][gumbel_softmax][gradient]") {
  gumbel_softmax_router<double> router(5, 4, {.temperature = 0.7, .samples = 4});
  initialize(router, 3);
  const auto report = test::conformance(router);
  INFO(report.describe());
  CHECK(report.passed());
  check_mixture_gradients(any_mixture(router), test::in_training());
  check_mixture_gradients(any_mixture(router), {});
}

TEST_CASE("dense mixtures with gates for them: trained temperature, activation, transformed input",
          "[router][dense_softmax]") {
  const matrix<double> x = test::random_matrix<double>(7, 4, 31);
  const auto plain = [] {
    linear_gate<double> gate(4, 3, {.bias = true});
    initialize(gate, 32);
    test::fill_normal(gate.bias(), 33);
    return gate;
  };
  const matrix<double> expected = mixture_weights(dense_softmax_router<double, linear_gate<double>>(plain()), x);
  const auto near_plain = [&](auto gate) {
    return test::largest_difference(mixture_weights(dense_softmax_router<double, decltype(gate)>(gate), x), expected);
  };
  CHECK(near_plain(tempered_gate(activated_gate<linear_gate<double>, no_activation>(plain()))) <=
        test::bound<double>(8));
  CHECK(near_plain(transformed_gate<linear_gate<double>, no_activation>(plain())) == 0);
  CHECK(near_plain(transformed_gate(plain())) > 0.01);
  // tau -> infinity: even; tau -> 0: one-hot at the arg max
  const auto at = [&](double tau) {
    tempered_gate gate{activated_gate{plain()}, tau};
    return mixture_weights(dense_softmax_router<double, decltype(gate)>(gate), x);
  };
  CHECK(test::largest_difference(at(1e9), matrix<double>::Constant(7, 3, 1 / 3.)) < 1e-8);
  const matrix<double> cold = at(1e-9);
  for (index_t t = 0; t < 7; ++t) CHECK((cold.row(t).maxCoeff() == 1 && cold.row(t).sum() == 1));

  tempered_gate gate{activated_gate{transformed_gate{plain()}}, 0.8};
  check_mixture_gradients(any_mixture(dense_softmax_router<double, decltype(gate)>(gate)), test::in_training());
}
