#include <sluice/layer/beside.hpp>

#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/normalized.hpp>
#include <sluice/layer/output_normalized.hpp>
#include <sluice/router/top_k.hpp>

#include "router/layer_checks.hpp"

using namespace sluice;

namespace {

template <typename Scalar>
auto mixture() {
  return moe_layer{top_k_router<Scalar>{6, 4, {.top_k = 2}}, expert_bank<swiglu<Scalar>>{4, 6, 5}};
}

/// Two branches, each between norms.
template <typename Scalar>
auto branches() {
  const auto norm = [] { return rms_norm<Scalar>{6, {.epsilon = Scalar(1e-6)}}; };
  return beside_layer{output_normalized_layer{mixture<Scalar>(), norm()},
                      output_normalized_layer{normalized_layer{dense_layer{swiglu<Scalar>{6, 7}}, norm()}, norm()}};
}

}  // namespace

TEST_CASE("output_normalized: is the norm of what the layer puts out", "[layer][normalized]") {
  output_normalized_layer layer{mixture<float>(), rms_norm<float>{6}};
  initialize(layer, 3);
  test::fill_normal(layer.norm().gain(), 4);
  const matrix<float> x = test::random_matrix<float>(9, 6, 5);
  matrix<float> raw(9, 6), y(9, 6), wanted(9, 6);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  decltype(mixture<float>())::workspace inner;
  layer.layer().forward(x, raw, inner);
  rms_norm<float>::tape norm_tape;
  layer.norm().forward(raw, wanted, norm_tape, {});
  CHECK(test::same_bits(y, wanted));
}

TEST_CASE("beside: is the sum of both layers", "[layer][beside]") {
  auto layer = branches<float>();
  initialize(layer, 6);
  const matrix<float> x = test::random_matrix<float>(9, 6, 7);
  matrix<float> y(9, 6), first(9, 6), second(9, 6);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  std::remove_cvref_t<decltype(layer.layer())>::workspace a;
  std::remove_cvref_t<decltype(layer.other())>::workspace b;
  layer.layer().forward(x, first, a);
  layer.other().forward(x, second, b);
  CHECK(test::same_bits(y, matrix<float>(first + second)));
  CHECK(layer.stored_as<bfloat16_storage>().experts() == 4);
  CHECK(layer.workspace_bytes(9) > layer.layer().workspace_bytes(9));
  CHECK_THROWS_WITH((beside_layer{mixture<float>(), dense_layer{swiglu<float>{5, 7}}}),
                    Catch::Matchers::Contains("6 -> 6 and 5 -> 5"));
}

TEST_CASE("beside, output_normalized: gradients equal central differences", "[layer][beside][normalized][gradient]") {
  const std::vector<std::uint8_t> mask{1, 0, 1, 1, 1, 1, 0, 1, 1};
  auto context = test::in_training();
  context.token_mask = mask;
  auto layer = branches<double>();
  initialize(layer, 11);
  const auto report = test::layer_gradients(layer, test::random_matrix<double>(9, 6, 12), context);
  INFO(report.describe());
  CHECK(report.checked > 500);
  CHECK(report.largest_error < test::gradient_tolerance);
}

TEST_CASE("beside, output_normalized: equal bits for every thread count, NaN stays in its token, no tokens",
          "[layer][beside][normalized]") {
  auto layer = branches<float>();
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
  for_each_parameter(layer, [](const std::string& name, parameter<float>& p) {
    CAPTURE(name);
    if (name.find("norm.gain") != std::string::npos)
      for (const float g : p.gradient()) CHECK(std::isfinite(g));
  });
  matrix<float> none(0, 6);
  layer.forward(none, none, tape);
  layer.backward(none, none, tape);
}
