#include <sluice/expert/normalized_bank.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include "layer/layer_promises.hpp"
#include "router/layer_checks.hpp"

using namespace sluice;

namespace {

template <typename Scalar>
auto layer_of() {
  return moe_layer{top_k_router<Scalar>{6, 4, {.top_k = 2}},
                   normalized_bank{expert_bank<swiglu<Scalar>>{4, 6, 5}, rms_norm<Scalar>{6}}};
}

}  // namespace

TEST_CASE("normalized_bank: experts read normalised tokens, the router those that came", "[expert][normalized]") {
  auto layer = layer_of<float>();
  static_assert(decltype(layer)::fused);
  initialize(layer, 3);
  test::fill_normal(layer.bank().norm().gain(), 4);
  const matrix<float> x = test::random_matrix<float>(9, 6, 5);
  matrix<float> normalized(9, 6), y(9, 6), wanted(9, 6);
  rms_norm<float>::tape norm_tape;
  layer.bank().norm().forward(x, normalized, norm_tape, {});
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);

  moe_layer plain{layer.router(), layer.bank().bank()};
  decltype(plain)::workspace own;
  plain.router().route(x, {}, own.plan, own.router);
  plain.forward_planned(normalized, wanted, own);
  CHECK(test::same_bits(y, wanted));
  auto small = layer.stored_as<bfloat16_storage>();
  CHECK(test::same_bits(small.bank().norm().gain().to_matrix(), layer.bank().norm().gain().to_matrix()));
}

TEST_CASE("normalized_bank: a norm of another width is refused", "[expert][normalized]") {
  CHECK_THROWS_WITH((normalized_bank{expert_bank<swiglu<float>>{4, 6, 5}, rms_norm<float>{5}}),
                    Catch::Matchers::Contains("rows of width 6; the norm is for width 5"));
}

TEST_CASE("normalized_bank: every promise of a layer, in one pass and apart", "[expert][normalized][conformance]") {
  test::check_layer_promises(layer_of<double>(), 11);
  // A bank that does not gather rows itself: the norm runs on gathered rows.
  test::check_layer_promises(moe_layer{top_k_router<double>{6, 4, {.top_k = 2}},
                                       normalized_bank{expert_bank<identity_expert<double>>{4, 6}, rms_norm<double>{6}}},
                             11);
}

