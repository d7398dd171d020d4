#include <sluice/layer/images/chosen_channels.hpp>

#include <sluice/layer/dense.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "../../support.hpp"

using namespace sluice;

TEST_CASE("chosen_channels: every image runs through the convolution that its scores name", "[layer][images]") {
  chosen_channels_layer<float> layer({2, 5, 4}, 3, 2, window_shape::square(3, 1, 1), {.bias = true});
  initialize(layer, 1);
  const matrix<float> x = test::random_matrix<float>(4, 40, 2);
  matrix<float> scores(4, 3), y(4, layer.outputs()), own(1, layer.outputs());
  scores << 0, 1, 2, 3, 3, 1, -1, -2, -3, 0, 5, 1;  // the second row has a tie
  routing_context<float> context;
  context.features = scores;
  decltype(layer)::workspace ws;
  layer.forward(x, y, ws, context);
  const index_t chosen[] = {2, 0, 0, 1};
  for (index_t t = 0; t < 4; ++t) {
    const dense_layer alone{layer.bank().expert(chosen[t])};
    decltype(alone)::workspace memory;
    alone.forward(x.row(t), own, memory);
    CHECK(test::same_bits(matrix<float>(y.row(t)), own));
  }
}

TEST_CASE("chosen_channels: scores learn by the straight-through estimate of the chosen alone", "[layer][images]") {
  chosen_channels_layer<double> layer({1, 3, 3}, 2, 2, window_shape::square(2));
  initialize(layer, 3);
  const matrix<double> x = test::random_matrix<double>(3, 9, 4), dy = test::random_matrix<double>(3, 8, 5);
  matrix<double> scores(3, 2), y(3, 8), dx(3, 9);
  scores << 1, 0, 0, 1, 2, 1;
  routing_context<double> context;
  context.training = true;
  context.features = scores;
  decltype(layer)::tape tape;
  layer.forward(x, y, tape, context);
  layer.backward(dy, dx, tape);
  const matrix<double> dscores = tape.router.gate.features_gradient().map();
  for (index_t t = 0; t < 3; ++t) {
    const index_t e = scores(t, 1) > scores(t, 0);
    CHECK(dscores(t, e) == Approx(dy.row(t).dot(y.row(t))).epsilon(1e-13));
    CHECK(dscores(t, 1 - e) == 0);
  }
}

TEST_CASE("chosen_channels: keeps the promises of layers, with one expert is a convolution", "[layer][images]") {
  chosen_channels_layer<double> layer({2, 4, 4}, 3, 2, {2, 3, 2, 1}, {.bias = true});
  initialize(layer, 6);
  const matrix<double> scores = test::random_matrix<double>(11, 3, 7);
  layer_check_options<double> options{.tokens = 11, .gradient_tokens = 4};
  options.context.features = scores;
  const auto report = check_layer(layer, options);
  INFO(report.describe());
  CHECK(report.passed());

  const matrix<double> x = test::random_matrix<double>(3, 32, 8), one = matrix<double>::Zero(3, 1);
  chosen_channels_layer<double> single({2, 4, 4}, 1, 3, window_shape::square(3));
  initialize(single, 9);
  matrix<double> y(3, single.outputs()), expected(3, single.outputs());
  routing_context<double> context;
  context.features = one;
  decltype(single)::workspace ws;
  single.forward(x, y, ws, context);
  const dense_layer plain{single.bank().expert(0)};
  decltype(plain)::workspace memory;
  plain.forward(x, expected, memory);
  CHECK(test::same_bits(y, expected));
}
