#include <sluice/layer/branches/weighed.hpp>

#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/layer/beside.hpp>
#include <sluice/layer/normalized.hpp>
#include <sluice/layer/sequence.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include "layer/layer_promises.hpp"

#include <cmath>

using namespace sluice;

namespace {

template <typename Scalar>
auto weighed_pair() {
  return weighed_branches{moe_layer{top_k_router<Scalar>{6, 4, {.top_k = 1, .weights = weighting::pre}},
                                    expert_bank<swiglu<Scalar>>{4, 6, 5}},
                          dense_layer{ffn<Scalar, gelu>{6, 7, {.bias = true}}}};
}

/// Branches of which the first returns x and the second nothing.
auto copy_and_nothing() {
  return weighed_branches{dense_layer{identity_expert<double>{2}}, dense_layer{zero_expert<double>{2}}};
}

}  // namespace

static_assert(std::same_as<decltype(weighed_pair<float>()),
                           residual_moe<moe_layer<top_k_router<float>, expert_bank<swiglu<float>>>, ffn<float, gelu>>>);

TEST_CASE("weighed: weights of zero make the mean of both branches", "[layer][branches]") {
  auto layer = weighed_pair<float>();
  initialize(layer, 3);
  layer.weighing().weight().fill([](index_t) { return 0.0f; });
  const matrix<float> x = test::random_matrix<float>(9, 6, 5);
  matrix<float> y(9, 6), first(9, 6), second(9, 6);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  std::remove_cvref_t<decltype(layer.layer())>::workspace a;
  std::remove_cvref_t<decltype(layer.other())>::workspace b;
  layer.layer().forward(x, first, a);
  layer.other().forward(x, second, b);
  CHECK(test::same_bits(y, matrix<float>(0.5f * first + 0.5f * second)));
}

TEST_CASE("weighed: the first weight is the mixture's, and the gate learns from a mixture that puts out zero",
          "[layer][branches]") {
  auto layer = copy_and_nothing();
  layer.weighing().weight().fill([](index_t) { return 0.0; });
  const std::vector<double> bias{0.3, -0.2};
  std::copy(bias.begin(), bias.end(), layer.weighing().bias().value().begin());
  matrix<double> x(1, 2), y(1, 2), dx(1, 2), dy(1, 2);
  x << 1, 2;
  dy << 3, 5;
  decltype(layer)::tape tape;
  layer.forward(x, y, tape);
  const double c = 1 / (1 + std::exp(-0.5));  // 0.622459
  CHECK(y(0, 0) == Approx(c).epsilon(1e-14));
  CHECK(y(0, 1) == Approx(2 * c).epsilon(1e-14));
  CHECK(tape.weights(0, 1) == Approx(0.377541).margin(5e-7));
  layer.backward(dy, dx, tape);
  const double dlogit = c * (1 - c) * (3 + 10);
  CHECK(layer.weighing().bias().gradient()[0] == Approx(dlogit).epsilon(1e-14));
  CHECK(layer.weighing().bias().gradient()[1] == Approx(-dlogit).epsilon(1e-14));
  CHECK(layer.weighing().weight().gradient()[1] == Approx(2 * dlogit).epsilon(1e-14));
  CHECK(dx(0, 0) == Approx(3 * c).epsilon(1e-14));

  weighed_branches silent{dense_layer{zero_expert<double>{2}}, dense_layer{identity_expert<double>{2}}};
  initialize(silent, 1);
  decltype(silent)::tape other;
  silent.forward(x, y, other);
  silent.backward(dy, dx, other);
  CHECK(std::abs(silent.weighing().bias().gradient()[0]) > 0.1);
}

TEST_CASE("weighed: converts, counts its memory, and refuses branches of other widths", "[layer][branches]") {
  auto layer = weighed_pair<float>();
  initialize(layer, 4);
  const auto small = layer.stored_as<bfloat16_storage>();
  CHECK(small.experts() == 4);
  const matrix<float> x = test::random_matrix<float>(9, 6, 5);
  matrix<float> y(9, 6), rounded(9, 6);
  decltype(layer)::workspace workspace;
  std::remove_cv_t<decltype(small)>::workspace small_workspace;
  layer.forward(x, y, workspace);
  small.forward(x, rounded, small_workspace);
  CHECK((y - rounded).cwiseAbs().maxCoeff() < 0.05f * y.cwiseAbs().maxCoeff());
  CHECK(layer.workspace_bytes(9) > layer.layer().workspace_bytes(9) + layer.other().workspace_bytes(9));
  CHECK_THROWS_WITH((weighed_branches{dense_layer{swiglu<float>{6, 7}}, dense_layer{swiglu<float>{5, 7}}}),
                    Catch::Matchers::Contains("6 -> 6 and 5 -> 5"));
}

TEST_CASE("weighed: every promise of a layer", "[layer][branches][conformance]") {
  test::check_layer_promises(weighed_pair<double>(), 11);
}
