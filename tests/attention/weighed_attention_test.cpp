#include <sluice/attention/weighed_attention.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/layer/beside.hpp>
#include <sluice/layer/branches/weighed.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/normalized.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/loss/expert_target.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/gradient_check.hpp>
#include <sluice/train/initialize.hpp>
#include <sluice/train/model_part.hpp>

#include "../support.hpp"

using namespace sluice;

static_assert(TrainableLayer<weighed_attention<float>>);

namespace {

constexpr index_t bam_width = 6, bam_tokens = 11;
using dense_attention = self_attention<double>;

std::vector<dense_attention> dense_attentions(index_t count) {
  std::vector<dense_attention> layers;
  for (index_t j = 0; j < count; ++j) {
    layers.emplace_back(bam_width, self_attention_options{.heads = 2, .rotary = {.width = 2}});
    initialize(layers.back(), 30 + as_size(j));
  }
  return layers;
}

template <typename Layer>
matrix<double> output_of(const Layer& layer, const matrix<double>& x) {
  matrix<double> y(x.rows(), layer.outputs());
  typename Layer::workspace ws;
  layer.forward(x, y, ws);
  return y;
}

}  // namespace

TEST_CASE("weighed_attention: every promise of a layer", "[attention][conformance]") {
  for (const keys_of keys : {keys_of::each, keys_of::all}) {
    weighed_attention<double> layer(bam_width, {.experts = 3, .heads = 2, .keys = keys, .rotary = {.width = 2}});
    initialize(layer, 3);
    layer.gate().assign(test::random_matrix<double>(3, bam_width, 4));
    const auto report = check_layer(layer, {.seed = 5});
    INFO(report.describe());
    CHECK(report.passed());
    CHECK(report.find("gradients")->result == outcome::passed);
  }
}

TEST_CASE("weighed_attention: the sum of dense layers by the softmax of the token's scores", "[attention]") {
  const auto layers = dense_attentions(3);
  auto mixture = weighed_attention<double>::of_layers(layers);
  const matrix<double> x = test::random_matrix<double>(bam_tokens, bam_width, 1),
                       gate = test::random_matrix<double>(3, bam_width, 2);
  mixture.gate().assign(gate);
  matrix<double> weights = (x * gate.transpose()).array().exp(), expected = matrix<double>::Zero(bam_tokens, bam_width);
  for (index_t t = 0; t < bam_tokens; ++t) weights.row(t) /= weights.row(t).sum();
  for (index_t j = 0; j < 3; ++j) expected += weights.col(j).asDiagonal() * output_of(layers[as_size(j)], x);
  CHECK(test::largest_difference(output_of(mixture, x), expected) < test::bound<double>(3 * bam_width + bam_tokens, 4));
}

TEST_CASE("weighed_attention: equal experts are the dense layer, whatever the weights", "[attention]") {
  const dense_attention dense = dense_attentions(1).front();
  const std::vector<dense_attention> layers(4, dense);
  const matrix<double> x = test::random_matrix<double>(bam_tokens, bam_width, 1);
  for (const keys_of keys : {keys_of::each, keys_of::all}) {
    auto mixture = weighed_attention<double>::of_layers(layers, keys);
    mixture.gate().assign(test::random_matrix<double>(4, bam_width, 2));
    CHECK(test::largest_difference(output_of(mixture, x), output_of(dense, x)) <
          test::bound<double>(4 * bam_width + bam_tokens, 4));
  }
}

TEST_CASE("weighed_attention: a weight of one is one dense model's attention", "[attention]") {
  const auto layers = dense_attentions(3);
  auto mixture = weighed_attention<double>::of_layers(layers);
  matrix<double> x = test::random_matrix<double>(bam_tokens, bam_width, 1), gate = matrix<double>::Zero(3, bam_width);
  x.col(0).setConstant(1);
  gate(1, 0) = 800;  // the others' exponentials are zero
  mixture.gate().assign(gate);
  CHECK(test::largest_difference(output_of(mixture, x), output_of(layers[1], x)) <
        test::bound<double>(3 * bam_width + bam_tokens, 4));
}

TEST_CASE("weighed_attention: shared keys are the mean of the layers', and a cache holds one set", "[attention]") {
  auto layers = dense_attentions(2);
  auto mixture = weighed_attention<double>::of_layers(layers, keys_of::all);
  const matrix<double> mean = (layers[0].key().to_matrix() + layers[1].key().to_matrix()) / 2;
  CHECK(test::largest_difference(mixture.key().to_matrix(), mean) < 1e-15);
  CHECK(mixture.attention_shape().key_heads == 2);
  const matrix<double> x = test::random_matrix<double>(bam_tokens, bam_width, 1), whole = output_of(mixture, x);
  key_value_cache<double> cache(mixture, 1, bam_tokens);
  weighed_attention<double>::workspace ws;
  matrix<double> y(1, bam_width);
  for (index_t t = 0; t < bam_tokens; ++t) {
    mixture.forward_cached(x.middleRows(t, 1), y, cache, ws);
    CHECK(test::same_bits(y, whole.middleRows(t, 1)));
  }
}

TEST_CASE("weighed_attention: BAM's parallel block is made of parts", "[attention][conformance]") {
  const moe_layer experts{top_k_router<double>{bam_width, 3, {.top_k = 2}}, expert_bank<ffn<double>>{3, bam_width, 5}};
  const weighed_attention<double> attention(bam_width, {.experts = 2, .heads = 2});
  residual_layer block{normalized_layer{beside_layer{experts, attention}, rms_norm<double>{bam_width}}};
  initialize(block, 3);
  const auto report = check_layer(block, {.seed = 5});
  INFO(report.describe());
  CHECK(report.passed());
}

TEST_CASE("weighed_attention: layers of several shapes and biases are refused", "[attention]") {
  auto layers = dense_attentions(2);
  layers[1] = dense_attention(bam_width, {.heads = 3});
  CHECK_THROWS_AS(weighed_attention<double>::of_layers(layers), std::invalid_argument);
  layers[1] = dense_attention(bam_width, {.heads = 2, .output_bias = true, .rotary = {.width = 2}});
  CHECK_THROWS_AS(weighed_attention<double>::of_layers(layers), std::invalid_argument);
  CHECK_THROWS_AS(weighed_attention<double>::of_layers({}), std::invalid_argument);
  CHECK_THROWS_AS(weighed_attention<double>(bam_width, {.experts = 0}), std::invalid_argument);
  CHECK_THROWS_AS(weighed_attention<double>(bam_width, {.heads = 4}), std::invalid_argument);
}

TEST_CASE("mixture of attention for images: the prior answers for the background and stays as it was", "[attention]") {
  using image_attention = self_attention<double, attention_order::bidirectional>;
  image_attention prior(6, {.heads = 2});
  initialize(prior, 3);
  weighed_branches layer{prior, prior,
                         expert_target_loss{.coefficient = 0.5, .form = target_form::squared_shortfall}};
  initialize(layer.weighing(), 5);
  const index_t T = 9;
  const std::vector<index_t> borders{0, 4, 9}, background{0, 0, -1, 0, -1, -1, 0, 0, 0};
  const routing_context<double> context{.training = true, .sequences = borders, .cluster_ids = background};
  matrix<double> x = test::random_matrix<double>(T, 6, 1);
  matrix<double> y(T, 6), expected(T, 6), dx(T, 6);
  decltype(layer)::tape tape;
  image_attention::workspace ws;
  layer.forward(x, y, tape, context);
  prior.forward(x, expected, ws, context);
  CHECK(test::largest_difference(y, expected) < test::bound<double>(4, 4));  // branches are alike: weights do not matter
  double lacking = 0;
  for (index_t t = 0; t < T; ++t)
    if (background[as_size(t)] == 0) lacking += std::pow(1 - tape.weights(t, 0), 2) / 6;
  CHECK(tape.loss() == Approx(0.5 * lacking).epsilon(1e-13));

  layer.other().query().fill([](index_t i) { return 0.1 * double(i % 7) - 0.3; });
  layer.other().value().fill([](index_t i) { return 0.2 - 0.05 * double(i % 9); });
  const matrix<double> dy = test::random_matrix<double>(T, 6, 2);
  layer.forward(x, y, tape, context);
  layer.backward(dy, dx, tape);
  const auto report = check_gradients(layer, {{"x", test::span_of(x), test::span_of(std::as_const(dx))}}, [&] {
    decltype(layer)::tape own;
    layer.forward(x, y, own, context);
    return (y.array() * dy.array()).sum() + own.loss();
  });
  INFO(report.describe());
  CHECK(report.checked > 200);
  CHECK(report.largest_error < 1e-6);

  for_each_parameter(layer.layer(), [](const std::string&, auto& p) { p.set_frozen(true); });
  decltype(layer)::tape frozen;
  zero_gradients(layer);
  layer.forward(x, y, frozen, context);
  layer.backward(dy, dx, frozen);
  index_t learned = 0;
  for_each_parameter(layer, [&](const std::string& name, auto& p) {
    CAPTURE(name);
    const bool is_still = std::ranges::all_of(p.gradient(), [](double g) { return g == 0; });
    CHECK(is_still == name.starts_with("layer."));
    learned += p.is_learned();
  });
  CHECK(learned == 6);  // four maps of the personal branch, weight and bias of the weighing

  // Losses pull the background towards the prior.
  for (int step = 0; step < 40; ++step) {
    layer.forward(x, y, frozen, context);
    layer.backward(matrix<double>::Zero(T, 6), dx, frozen);
    for (auto* p : {&layer.weighing().weight(), &layer.weighing().bias()})
      for (index_t i = 0; i < p->size(); ++i) p->value()[as_size(i)] -= p->gradient()[as_size(i)];
    zero_gradients(layer);
  }
  CHECK(frozen.loss() < 0.5 * 0.5 * lacking);  // half of what it was
}
