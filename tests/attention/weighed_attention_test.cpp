#include <sluice/attention/weighed_attention.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/layer/beside.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/normalized.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

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
