#include <sluice/layer/normalized.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/shared_expert.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include "layer_promises.hpp"
#include "router/layer_checks.hpp"

using namespace sluice;

namespace {

template <typename Scalar>
auto inner_layer() {
  return moe_layer{top_k_router<Scalar>{6, 4, {.top_k = 2}}, expert_bank<swiglu<Scalar>>{4, 6, 5}};
}

}  // namespace

TEST_CASE("normalized: is the inner layer of the normalised tokens", "[layer][normalized]") {
  normalized_layer layer{inner_layer<float>(), rms_norm<float>{6}};
  initialize(layer, 3);
  test::fill_normal(layer.norm().gain(), 4);
  const matrix<float> x = test::random_matrix<float>(9, 6, 5);
  matrix<float> normalized(9, 6), y(9, 6), wanted(9, 6);
  rms_norm<float>::tape norm_tape;
  layer.norm().forward(x, normalized, norm_tape, {});
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  decltype(inner_layer<float>())::workspace inner;
  layer.layer().forward(normalized, wanted, inner);
  CHECK(test::same_bits(y, wanted));
  CHECK_FALSE(test::same_bits(normalized, x));
}

TEST_CASE("normalized: every promise of a layer, around another wrapper too", "[layer][normalized][conformance]") {
  test::check_layer_promises(normalized_layer{inner_layer<double>(), layer_norm<double>{6, {.bias = true}}}, 11);
  test::check_layer_promises(
      normalized_layer{shared_expert_layer{inner_layer<double>(), ffn<double, gelu>{6, 3}}, unit_norm<double>{}}, 11);
}

TEST_CASE("normalized: padding with NaN reaches no gradient", "[layer][normalized]") {
  normalized_layer layer{inner_layer<float>(), rms_norm<float>{6}};
  initialize(layer, 31);
  matrix<float> x = test::random_matrix<float>(4, 6, 32);
  const std::vector<std::uint8_t> mask{1, 1, 0, 1};
  routing_context<float> context;
  context.training = true;
  context.token_mask = mask;
  decltype(layer)::tape tape;
  matrix<float> y(4, 6), dx(4, 6);
  layer.forward(x, y, tape, context);
  tape.x.map().row(2).setConstant(quiet_nan<float>());
  layer.backward(test::random_matrix<float>(4, 6, 33), dx, tape);
  CHECK(dx.row(2).isZero(0));
  CHECK(dx.allFinite());
  for (const float g : layer.norm().gain().gradient()) CHECK(std::isfinite(g));
}

TEST_CASE("normalized: wrong widths are named", "[layer][normalized]") {
  normalized_layer layer{inner_layer<float>(), rms_norm<float>{6}};
  initialize(layer, 41);
  decltype(layer)::tape tape;
  using Catch::Matchers::Contains;
  matrix<float> y(2, 6), dx(2, 5);
  CHECK_THROWS_WITH(layer.forward(matrix<float>(2, 5), y, tape), Contains("[T, 6]"));
  layer.forward(matrix<float>::Zero(2, 6), y, tape);
  CHECK_THROWS_WITH(layer.backward(y, dx, tape), Contains("[2, 5]"));
  CHECK_THROWS_WITH((normalized_layer{inner_layer<float>(), rms_norm<float>{5}}),
                    Contains("normalized_layer normalises rows of width 6; the norm is for width 5"));
  CHECK_THROWS_AS((normalized_layer{inner_layer<float>(), layer_norm<float>{7}}), std::invalid_argument);
  CHECK_THROWS_AS((normalized_layer{inner_layer<float>(), gain_only<float>{7}}), std::invalid_argument);
}
