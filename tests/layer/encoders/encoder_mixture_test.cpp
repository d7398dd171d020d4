#include <sluice/layer/encoders/encoder_mixture.hpp>

#include <sluice/expert/ffn.hpp>
#include <sluice/gate/features.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/encoders/zero_gated.hpp>
#include <sluice/router/every_expert/dense.hpp>
#include <sluice/router/masked/offered.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "../../support.hpp"

using namespace sluice;

namespace {

/// An image of 12 numbers becomes six tokens of width 2, or four tokens of width 5 and something in between.
auto six_tokens() { return dense_layer{ffn<double, gelu>{12, 5, {.outputs = 12, .bias = true}}}; }
auto four_tokens() { return sequence{linear_layer<double>{12, 7}, linear_layer<double>{7, 20}}; }

template <typename Router>
auto two_encoders(Router router) {
  auto layer = encoder_mixture(std::move(router), merged_encoder(six_tokens(), {.tokens = 6, .merged = 2, .width = 3}),
                               merged_encoder(four_tokens(), {.tokens = 4, .merged = 2, .width = 3}));
  initialize(layer, 3);
  return layer;
}

using text_router = offered_router<double, features_gate<linear_gate<double>>>;

text_router by_text() { return text_router{features_gate{linear_gate<double>(4, 2), 12}, {.top_k = 2}}; }

}  // namespace

TEST_CASE("encoder_mixture: all encoders with weight 1 are the sum of each alone", "[layer][encoders]") {
  auto layer = two_encoders(dense_router<double>{12, 2});
  CHECK((layer.inputs() == 12 && layer.outputs() == 6));
  const matrix<double> x = test::random_matrix<double>(5, 12, 4);
  matrix<double> y(5, 6), first(5, 6), second(5, 6);
  decltype(layer)::workspace ws;
  layer.forward(x, y, ws);
  const auto alone = [&](const auto& network, matrix<double>& out) {
    typename std::remove_cvref_t<decltype(network)>::workspace memory;
    network.forward(x, out, memory);
  };
  alone(layer.bank().bank<0>().network(0), first);
  alone(layer.bank().bank<1>().network(0), second);
  CHECK(test::largest_difference(y, matrix<double>(first + second)) < test::bound<double>(20, 10));
  // Merged by hand: three neighbours of the six tokens are one row of six numbers.
  const auto& [encoder, merge] =
      std::pair(layer.bank().bank<0>().network(0).layer<0>(), layer.bank().bank<0>().network(0).layer<1>());
  matrix<double> tokens(5, 12);
  alone(encoder, tokens);
  auto map = merge.layer();
  const matrix<double> merged = const_matrix_map<double>(tokens.data(), 10, 6) * map.weight().to_matrix().transpose();
  CHECK(test::largest_difference(matrix<double>(const_matrix_map<double>(first.data(), 10, 3)), merged) <
        test::bound<double>(6, 10));
}

TEST_CASE("encoder_mixture: a text weighs the encoders that were offered, the others are not asked",
          "[layer][encoders]") {
  auto layer = two_encoders(by_text());
  const matrix<double> x = test::random_matrix<double>(3, 12, 5), text = test::random_matrix<double>(3, 4, 6);
  matrix<index_t> offers(3, 2);
  offers << 0, 1, 1, no_expert, no_expert, no_expert;
  routing_context<double> context;
  context.training = true;
  context.features = text;
  context.expert_ids = offers;
  matrix<double> y(3, 6), own(1, 6), dx(3, 12);
  decltype(layer)::tape tape;
  layer.forward(x, y, tape, context);
  CHECK(tape.plan.of_token(0).size() == 2);
  const auto& second = layer.bank().bank<1>().network(0);
  std::remove_cvref_t<decltype(second)>::workspace memory;
  second.forward(x.row(1), own, memory);
  CHECK(test::largest_difference(matrix<double>(y.row(1)), own) < test::bound<double>(20, 10));
  CHECK(y.row(2).isZero(0));
  offers(0, 1) = no_expert;  // the second encoder sees the second image alone, the first the first
  layer.forward(x, y, tape, context);
  zero_gradients(layer);
  layer.backward(test::random_matrix<double>(3, 6, 7), dx, tape);
  CHECK(tape.router.gate.inner.features_gradient().map().isZero(0));  // each weight is 1, whatever the text says
  CHECK(dx.row(2).isZero(0));
}

TEST_CASE("encoder_mixture: keeps the promises of layers", "[layer][encoders]") {
  const matrix<double> text = test::random_matrix<double>(15, 4, 8);
  matrix<index_t> offers(15, 2);
  for (index_t t = 0; t < 15; ++t) offers.row(t) << t % 2, (t % 3 == 0 ? no_expert : 1 - t % 2);
  layer_check_options<double> options{.tokens = 15, .gradient_tokens = 4};
  options.context.features = text;
  options.context.expert_ids = offers;
  const auto report = check_layer(two_encoders(by_text()), options);
  INFO(report.describe());
  CHECK(report.passed());
  CHECK_THROWS_WITH(merged_encoder(six_tokens(), {.tokens = 6, .merged = 4, .width = 3}),
                    Catch::Contains("gives 12 numbers cannot give 6 tokens that are merged into 4"));
}

TEST_CASE("zero_gated: at first the model is what it was, and the gate alone learns", "[layer][encoders]") {
  zero_gated_layer layer{dense_layer{ffn<double, gelu>{6, 5, {.bias = true}}}};
  initialize(layer, 9);
  const matrix<double> x = test::random_matrix<double>(4, 6, 10), dy = test::random_matrix<double>(4, 6, 11);
  matrix<double> y(4, 6), dx(4, 6);
  decltype(layer)::tape tape;
  layer.forward(x, y, tape);
  CHECK(test::same_bits(y, x));
  layer.backward(dy, dx, tape);
  CHECK(test::same_bits(dx, dy));
  CHECK(layer.gate().gradient()[0] != 0);
  CHECK(layer.layer().expert().up().gradient_matrix().isZero(0));
  layer.gate().data()[0] = 0.4;
  const auto report = check_layer(layer);
  INFO(report.describe());
  CHECK(report.passed());
}
