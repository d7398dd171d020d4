#include <sluice/expert/normalized_bank.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/router/top_k.hpp>

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

TEST_CASE("normalized_bank: gradients equal central differences, in one pass and apart",
          "[expert][normalized][gradient]") {
  const std::vector<std::uint8_t> mask{1, 0, 1, 1, 1, 1, 0, 1, 1};
  auto context = test::in_training();
  context.token_mask = mask;
  const auto check = [&](auto layer) {
    initialize(layer, 11);
    const auto report = test::layer_gradients(layer, test::random_matrix<double>(9, 6, 12), context);
    INFO(report.describe());
    CHECK(report.checked > 50);
    CHECK(report.largest_error < test::gradient_tolerance);
  };
  check(layer_of<double>());
  // A bank that does not gather rows itself: the norm runs on gathered rows.
  check(moe_layer{top_k_router<double>{6, 4, {.top_k = 2}},
                  normalized_bank{expert_bank<identity_expert<double>>{4, 6}, rms_norm<double>{6}}});
}

TEST_CASE("normalized_bank: equal bits for every thread count, NaN stays in its token", "[expert][normalized]") {
  auto layer = layer_of<float>();
  initialize(layer, 21);
  routing_context<float> context;
  context.training = true;
  test::check_equal_bits(layer, 131, context);

  matrix<float> x = test::random_matrix<float>(5, 6, 22), y(5, 6), dx(5, 6);
  x(3, 1) = quiet_nan<float>();
  decltype(layer)::tape tape;
  zero_gradients(layer);
  layer.forward(x, y, tape);
  layer.backward(test::random_matrix<float>(5, 6, 23), dx, tape);
  for (index_t t = 0; t < 5; ++t) CHECK(is_nan(y(t, 0)) == (t == 3));
  for (const float g : layer.bank().norm().gain().gradient()) CHECK(std::isfinite(g));
}
