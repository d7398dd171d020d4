#include <sluice/layer/moe_layer.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/expert/union.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/gradient_check.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

/// sum(y * weight): a loss whose gradient dy is `weight`.
template <typename Layer>
double objective(const Layer& layer, const matrix<double>& x, const matrix<double>& weight,
                 routing_context<double> context) {
  matrix<double> y(x.rows(), layer.outputs());
  typename Layer::workspace workspace;
  layer.forward(x, y, workspace, context);
  return (y.array() * weight.array()).sum();
}

template <typename Layer>
gradient_report check_layer(Layer& layer, index_t tokens, std::uint64_t seed) {
  initialize(layer, seed);
  matrix<double> x = test::random_matrix<double>(tokens, layer.inputs(), seed + 1);
  const matrix<double> dy = test::random_matrix<double>(tokens, layer.outputs(), seed + 2);
  matrix<double> y(tokens, layer.outputs());
  matrix<double> dx(tokens, layer.inputs());
  typename Layer::tape tape;
  layer.forward(x, y, tape);
  layer.backward(dy, dx, tape);
  routing_context<double> context;
  context.training = true;
  return check_gradients(layer, {{"x", test::span_of(x), test::span_of(std::as_const(dx))}},
                         [&] { return objective(layer, x, dy, context); });
}

}  // namespace

TEST_CASE("moe_layer: gradients equal central differences for the three weightings", "[layer][gradient]") {
  const auto weights = GENERATE(weighting::pre, weighting::post, weighting::renorm);
  moe_layer layer{top_k_router<double>{6, 5, {.top_k = 2, .weights = weights}}, expert_bank<swiglu<double>>{5, 6, 7}};
  const auto report = check_layer(layer, 9, 11);
  INFO(report.describe());
  CHECK(report.checked > 600);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("moe_layer: gradients of a union of unlike banks equal central differences", "[layer][gradient]") {
  moe_layer layer{top_k_router<double>{6, 5, {.top_k = 3}},
                  expert_union{expert_bank<ffn<double, gelu>>(2, 6, 7, {.bias = true}),
                               expert_bank<identity_expert<double>>(1, 6), expert_bank<zero_expert<double>>(1, 6),
                               expert_bank<geglu<double>>(1, 6, 4, {.hidden_scale = true})}};
  const auto report = check_layer(layer, 9, 21);
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("moe_layer: equal bits for every executor and thread count", "[layer][determinism]") {
  moe_layer layer{top_k_router<float>{24, 7, {.top_k = 3}}, expert_bank<swiglu<float>>{7, 24, 37}};
  initialize(layer, 3);
  const matrix<float> x = test::random_matrix<float>(131, 24, 4);
  const matrix<float> dy = test::random_matrix<float>(131, 24, 5);
  const auto run = [&](executor_ref executor, matrix<float>& y, matrix<float>& dx) {
    zero_gradients(layer);
    decltype(layer)::tape tape;
    y.resize(131, 24);
    dx.resize(131, 24);
    routing_context<float> context;
    context.training = true;
    context.executor = executor;
    layer.forward(x, y, tape, context);
    layer.backward(dy, dx, tape);
    std::vector<float> gradients;
    for_each_parameter(layer, [&](const std::string&, parameter<float>& p) {
      gradients.insert(gradients.end(), p.gradient().begin(), p.gradient().end());
    });
    return gradients;
  };
  matrix<float> y1, dx1;
  const auto gradients1 = run({}, y1, dx1);
  for (const int threads : {1, 2, 3, 8}) {
    CAPTURE(threads);
    test::shuffled_threads pool(threads);
    matrix<float> y, dx;
    const auto gradients = run(pool, y, dx);
    CHECK(test::same_bits(y, y1));
    CHECK(test::same_bits(dx, dx1));
    CHECK(std::memcmp(gradients.data(), gradients1.data(), gradients.size() * sizeof(float)) == 0);
  }
}
