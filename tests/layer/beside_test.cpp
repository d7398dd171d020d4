#include <sluice/layer/beside.hpp>

#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/normalized.hpp>
#include <sluice/layer/output_normalized.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include "layer_promises.hpp"
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

TEST_CASE("output_normalized: a norm of another width than the outputs is refused", "[layer][normalized]") {
  CHECK_THROWS_WITH((output_normalized_layer{mixture<float>(), rms_norm<float>{5}}),
                    Catch::Matchers::Contains("rows of width 6; the norm is for width 5"));
}

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

TEST_CASE("beside, output_normalized: every promise of a layer", "[layer][beside][normalized][conformance]") {
  test::check_layer_promises(branches<double>(), 11);
}


TEST_CASE("beside: a block of a mixer and a mixture side by side (BlackMamba)", "[layer][beside][residual]") {
  // x + mixture(n1(x)) + mixer(n2(x)), each branch with a norm of its own.
  const auto norm = [] { return rms_norm<float>{6, {.epsilon = 1e-6f}}; };
  const auto routed = [&] { return normalized_layer{mixture<float>(), norm()}; };
  residual_layer parallel{beside_layer{routed(), normalized_layer{dense_layer{zero_expert<float>{6}}, norm()}}};
  residual_layer alone{routed()};
  initialize(parallel, 3);
  alone.layer() = parallel.layer().layer();
  const matrix<float> x = test::random_matrix<float>(9, 6, 5);
  matrix<float> y(9, 6), wanted(9, 6);
  decltype(parallel)::workspace workspace;
  decltype(alone)::workspace other;
  parallel.forward(x, y, workspace);
  alone.forward(x, wanted, other);
  CHECK(test::same_bits(y, wanted));  // a mixer that is zero leaves the residual mixture
}
