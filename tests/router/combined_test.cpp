#include <sluice/router/combined.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/linear.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/loss/importance.hpp>
#include <sluice/router/fixed/given.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

template <typename Scalar>
auto logarithmic_layer(log_sum_exp way, index_t k = 2) {
  moe_layer layer{combined_router{top_k_router<Scalar>{6, 4, {.top_k = k, .weights = weighting::pre}}, way},
                  expert_bank<ffn<Scalar, gelu>>{4, ffn<Scalar, gelu>{6, 5, {.outputs = 11, .bias = true}}},
                  importance_loss{}};
  initialize(layer, 3);
  return layer;
}

/// The outputs of all experts for one row.
template <typename Layer>
auto outputs_of(Layer& layer, tokens_in<typename Layer::scalar> row) {
  using scalar = typename Layer::scalar;
  matrix<scalar> all(layer.experts(), layer.outputs());
  for (index_t e = 0; e < layer.experts(); ++e) {
    matrix<scalar> one(1, layer.outputs()), saved(1, layer.bank().expert(e).saved_columns());
    layer.bank().expert(e).forward(row, one, saved);
    all.row(e) = one;
  }
  return all;
}

}  // namespace

TEST_CASE("combined: log-sum-exp of the chosen experts, with and without their weights", "[router][combined]") {
  for (const bool weighted : {false, true}) {
    auto layer = logarithmic_layer<double>({.weighted = weighted});
    const matrix<double> x = test::random_matrix<double>(9, 6, 4);
    matrix<double> y(9, 11);
    decltype(layer)::workspace ws;
    layer.forward(x, y, ws);
    for (index_t t = 0; t < 9; ++t) {
      const matrix<double> f = outputs_of(layer, x.row(t));
      for (index_t c = 0; c < 11; ++c) {
        double sum = 0;
        for (const index_t i : ws.plan.of_token(t))
          sum += (weighted ? ws.plan.weight(i) : 1.0) * std::exp(f(ws.plan.expert(i), c));
        CHECK(y(t, c) == Approx(std::log(sum)).epsilon(1e-13).margin(1e-13));
      }
    }
  }
}

TEST_CASE("combined: one expert gives its own scores, two equal ones log 2 more or the same", "[router][combined]") {
  auto layer = logarithmic_layer<float>({}, 1);
  const matrix<float> x = test::random_matrix<float>(5, 6, 5);
  matrix<float> y(5, 11);
  decltype(layer)::workspace ws;
  layer.forward(x, y, ws);
  for (index_t t = 0; t < 5; ++t)
    CHECK(test::same_bits(matrix<float>(y.row(t)),
                          matrix<float>(outputs_of(layer, x.row(t)).row(ws.plan.expert(ws.plan.of_token(t)[0])))));
  for (const bool weighted : {false, true}) {
    moe_layer same{combined_router{top_k_router<double>{6, 2, {.top_k = 2}}, log_sum_exp{.weighted = weighted}},
                   expert_bank<linear_expert<double>>(2, 6, 3)};
    initialize(same, 6);
    same.bank().expert(1) = same.bank().expert(0);
    const matrix<double> rows = test::random_matrix<double>(4, 6, 7);
    matrix<double> scores(4, 3);
    decltype(same)::workspace memory;
    same.forward(rows, scores, memory);
    const matrix<double> own = rows * same.bank().expert(0).weight().to_matrix().transpose();
    const double more = weighted ? 0 : std::log(2.0);
    CHECK(test::largest_difference(scores, matrix<double>(own.array() + more)) < test::bound<double>(6, 5));
  }
}

TEST_CASE("combined: keeps the promises of layers", "[router][combined]") {
  for (const bool weighted : {false, true}) {
    const auto report = check_layer(logarithmic_layer<double>({.weighted = weighted}));
    INFO(report.describe());
    CHECK(report.passed());
  }
}

TEST_CASE("combined: without weights the router gets no gradient but that of its losses", "[router][combined]") {
  auto layer = logarithmic_layer<double>({});
  layer.loss<0>().coefficient = 0;
  const matrix<double> x = test::random_matrix<double>(7, 6, 8), dy = test::random_matrix<double>(7, 11, 9);
  matrix<double> y(7, 11), dx(7, 6);
  decltype(layer)::tape tape;
  layer.forward(x, y, tape);
  layer.backward(dy, dx, tape);
  CHECK(layer.router().inner().gate().weight().gradient_matrix().isZero(0));
  CHECK(dx.norm() > 0);
}

TEST_CASE("combined: huge scores do not overflow, a token without experts has a small one, padding none",
          "[router][combined]") {
  moe_layer layer{combined_router{given_router<double>{no_gate<double>(2, 3)}, log_sum_exp{.weighted = true}},
                  expert_bank<linear_expert<double>>(3, 2, 2)};
  for (index_t e = 0; e < 3; ++e) layer.bank().expert(e).weight().fill([&](index_t i) { return i == e ? 1.0 : 0.0; });
  matrix<double> x(3, 2), y(3, 2), weights(3, 2), dx(3, 2);
  matrix<index_t> ids(3, 2);
  x << 1e4, -1e4, 1, 2, 3, 4;
  ids << 0, 1, no_expert, no_expert, 0, 1;
  weights << 0.25, 0.5, 1, 1, 1, 1;
  const std::vector<std::uint8_t> mask{1, 1, 0};
  routing_context<double> context;
  context.training = true;
  context.expert_ids = ids;
  context.expert_weights = weights;
  context.token_mask = mask;
  decltype(layer)::tape tape;
  layer.forward(x, y, tape, context);
  CHECK(y(0, 0) == Approx(1e4 + std::log(0.25)).epsilon(1e-15));  // e^-20000 of the other
  CHECK(y(0, 1) == Approx(std::log(0.75)).epsilon(1e-14));
  CHECK(y.row(1).isConstant(std::log(std::numeric_limits<double>::epsilon()), 0));
  CHECK(y.row(2).isZero(0));
  layer.backward(matrix<double>::Ones(3, 2).eval(), dx, tape);
  CHECK(dx.allFinite());
  CHECK(dx.bottomRows(2).isZero(0));
}
