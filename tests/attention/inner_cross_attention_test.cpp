// Cross-attention inside of layers and banks that hold others: it sees the rows of the call's encoders.
#include <sluice/attention/cross_attention.hpp>

#include <sluice/expert/latent_bank.hpp>
#include <sluice/expert/union.hpp>
#include <sluice/layer/encoders/network_bank.hpp>
#include <sluice/layer/encoders/unfolded.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/split/sub_tokens.hpp>
#include <sluice/layer/transposed.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

const cross_attention<double> inner_attention(4, {.source = 3, .heads = 2});

template <typename Layer>
matrix<double> inner_output_of(const Layer& layer, const matrix<double>& x, const routing_context<double>& context) {
  matrix<double> y(x.rows(), layer.outputs());
  typename Layer::workspace ws;
  layer.forward(x, y, ws, context);
  return y;
}

}  // namespace

TEST_CASE("cross_attention: experts on a projection of the tokens keep the promises of layers",
          "[attention][conformance]") {
  moe_layer layer{top_k_router<double>{6, 3, {.top_k = 2}},
                  latent_bank{expert_union{network_bank{3, inner_attention}}, 6, 6}};
  static_assert(!is_token_mixer<decltype(layer)> && is_causal<decltype(layer)>);
  initialize(layer, 3);
  const matrix<double> states = test::random_matrix<double>(7, 3, 4);
  const encoder_states<double> encoder{.rows = states};
  layer_check_options<double> options{.tokens = 21, .gradient_tokens = 5};
  options.context.encoders = {&encoder, 1};
  const auto report = check_layer(layer, options);
  INFO(report.describe());
  CHECK(report.passed());
  CHECK(report.find("gradients")->result == outcome::passed);
}

TEST_CASE("cross_attention: parts of tokens, and rows that are sequences, are tokens of their sequence",
          "[attention]") {
  auto attention = inner_attention;
  initialize(attention, 5);
  const matrix<double> x = test::random_matrix<double>(3, 8, 6), states = test::random_matrix<double>(9, 3, 7);
  const matrix<double> pieces = const_matrix_map<double>(x.data(), 6, 4);
  const std::vector<index_t> each{0, 1, 1, 2, 3}, of_pieces{0, 2, 2, 4, 6}, rows{0, 4, 5, 7, 9};
  const encoder_states<double> encoder{.rows = states, .sequences = rows};
  const routing_context<double> given{.sequences = each, .encoders = {&encoder, 1}};
  const matrix<double> wanted = inner_output_of(attention, pieces, {.sequences = of_pieces, .encoders = {&encoder, 1}});
  const auto as_pieces = [](const matrix<double>& y) {
    return matrix<double>(const_matrix_map<double>(y.data(), 6, 4));
  };
  CHECK(test::same_bits(as_pieces(inner_output_of(sub_token_layer{attention, 2}, x, given)), wanted));
  const unfolded_layer unfolded{attention, 2};
  CHECK(test::same_bits(as_pieces(inner_output_of(unfolded, x, given)), wanted));

  // All rows at the one network, with weight 1.
  moe_layer images{top_k_router<double>{8, 1, {.top_k = 1, .weights = weighting::post, .constant_weight = true}},
                   network_bank{1, unfolded}};
  images.router().gate().weight().fill([](index_t) { return 0.1; });
  CHECK(test::largest_difference(as_pieces(inner_output_of(images, x, given)), wanted) < test::bound<double>(4, 4));

  const encoder_states<double> of_all{.rows = states};
  CHECK_THROWS_WITH(inner_output_of(unfolded, x, {.encoders = {&of_all, 1}}),
                    Catch::Contains("encoders[0], of which there are 0 here: layers whose rows"));
}

TEST_CASE("cross_attention: the gradient of an encoder's rows comes through the layers around",
          "[attention][gradient]") {
  auto attention = inner_attention;
  initialize(attention, 5);
  // Two images of four tokens, whose three channels are what looks at the rows.
  transposed_layer layer{attention, 3};
  const matrix<double> x = test::random_matrix<double>(8, 3, 6), dy = test::random_matrix<double>(8, 3, 8);
  matrix<double> states = test::random_matrix<double>(5, 3, 7), dstates = matrix<double>::Zero(5, 3), y(8, 3), dx(8, 3);
  const std::vector<index_t> images{0, 4, 8}, rows{0, 2, 5};
  const encoder_states<double> encoder{.rows = states, .sequences = rows, .gradient = test::span_of(dstates)};
  const routing_context<double> given{.training = true, .groups = images, .encoders = {&encoder, 1}};
  decltype(layer)::tape tape;
  layer.forward(x, y, tape, given);
  layer.backward(dy, dx, tape);
  CHECK(!dstates.isZero(0));
  for (index_t i = 0; i < states.size(); ++i)
    CHECK(dstates.data()[i] == Approx(test::slope_at(states.data()[i], [&] {
                                 return inner_output_of(layer, x, given).cwiseProduct(dy).sum();
                               })).margin(1e-8));
}
