#include <sluice/layer/gradient/gate_scaled.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/derived/core_and_rest.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "../../support.hpp"

using namespace sluice;

namespace {

auto unit_layer(const ffn<double, gelu>& dense, index_t top_k) {
  return gate_scaled_layer{
      moe_layer{unit_weights_router{top_k_router<double>{5, 3, {.top_k = top_k, .weights = weighting::pre}}},
                core_and_rest_bank<double, gelu>{{dense, 3}}}};
}

}  // namespace

TEST_CASE("gate_scaled_layer: a converted network stays as it is and its router learns", "[layer][gate_scaled]") {
  ffn<double, gelu> dense(5, 8);
  initialize(dense, 3);
  auto layer = unit_layer(dense, 1);
  initialize(layer.router(), 4);
  const matrix<double> x = test::random_matrix<double>(9, 5, 5), dy = test::random_matrix<double>(9, 5, 6);
  matrix<double> y(9, 5), expected(9, 5), dx(9, 5), again(9, 5);
  decltype(layer)::tape tape;
  layer.forward(x, y, tape);
  const dense_layer<ffn<double, gelu>> whole(dense);
  dense_layer<ffn<double, gelu>>::workspace workspace;
  whole.forward(x, expected, workspace);
  CHECK(test::same_bits(y, expected));

  // Experts learn from G dy, the gate's weights from <dy, E(x)>: as a layer of weights G whose output nobody scaled.
  layer.backward(dy, dx, tape);
  moe_layer plain{layer.router().inner(), layer.bank()};
  zero_gradients(plain);
  decltype(plain)::tape plain_tape;
  matrix<double> weighted(9, 5), dweighted(9, 5);
  plain.forward(x, weighted, plain_tape);
  plain.backward(dy, dweighted, plain_tape);
  CHECK(test::same_bits(dx, dweighted));
  CHECK(test::same_bits(matrix<double>(layer.router().inner().gate().weight().gradient_map()),
                        matrix<double>(plain.router().gate().weight().gradient_map())));
  CHECK(test::same_bits(layer.bank().weights().rest(0, 1).gradient_matrix(),
                        plain.bank().weights().rest(0, 1).gradient_matrix()));
  CHECK(layer.router().inner().gate().weight().gradient_map().cwiseAbs().maxCoeff() > 0);
  layer.backward(dy, again, tape);
  CHECK(test::same_bits(again, dx));
}

TEST_CASE("gate_scaled_layer: every promise but an exact gradient", "[layer][gate_scaled][conformance]") {
  ffn<double, gelu> dense(5, 8);
  initialize(dense, 13);
  auto layer = unit_layer(dense, 2);
  initialize(layer, 14);
  const auto report = check_layer(layer);
  INFO(report.describe());
  CHECK(report.passed());
}
