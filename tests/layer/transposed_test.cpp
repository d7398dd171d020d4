#include <sluice/layer/transposed.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/linear.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/normalized.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/layer/sequence.hpp>
#include <sluice/loss/importance.hpp>
#include <sluice/router/tokens_choose/importance_score.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/gradient_check.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

#include <cmath>
#include <optional>

using namespace sluice;

namespace {

/// Two images of four patches with three channels.
template <typename Scalar>
auto token_mixing() {
  transposed_layer layer{
      moe_layer{importance_score_router<Scalar>{4, 2}, expert_bank<swiglu<Scalar>>{2, 4, 5}, importance_loss{}}, 3};
  initialize(layer, 81);
  return layer;
}
const std::vector<index_t> two_images{0, 4, 8};

}  // namespace

static_assert(TrainableLayer<decltype(token_mixing<float>())>);

TEST_CASE("transposed_layer: with one dense network it is a token-mixing network", "[layer][transposed]") {
  transposed_layer layer{dense_layer{ffn<double, gelu>{4, 7, {.outputs = 4, .bias = true}}}, 3};
  initialize(layer, 82);
  const matrix<double> x = test::random_matrix<double>(8, 3, 83);
  matrix<double> y(8, 3);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace, {.groups = two_images});
  for (index_t g = 0; g < 2; ++g) {
    const matrix<double> items = x.middleRows(4 * g, 4).transpose();
    matrix<double> out(3, 4);
    dense_layer<ffn<double, gelu>>::workspace inner;
    layer.layer().forward(items, out, inner);
    CHECK(test::same_bits(matrix<double>(y.middleRows(4 * g, 4)), matrix<double>(out.transpose())));
  }
  // Channels permute with their outputs.
  matrix<double> swapped = x, y2(8, 3);
  swapped.col(0).swap(swapped.col(2));
  layer.forward(swapped, y2, workspace, {.groups = two_images});
  y2.col(0).swap(y2.col(2));
  CHECK(test::same_bits(y2, y));
}

TEST_CASE("transposed_layer: gradients of a routed mixture over channels", "[layer][transposed][gradient]") {
  auto layer = token_mixing<double>();
  matrix<double> x = test::random_matrix<double>(8, 3, 84);
  const matrix<double> dy = test::random_matrix<double>(8, 3, 85);
  matrix<double> y(8, 3), dx(8, 3);
  decltype(layer)::tape tape;
  routing_context<double> context{.training = true, .groups = two_images};
  layer.forward(x, y, tape, context);
  layer.backward(dy, dx, tape);
  CHECK(tape.loss() > 0);
  CHECK(tape.layer.plan.tokens() == 6);
  const auto report = check_gradients(layer, {{"x", test::span_of(x), test::span_of(std::as_const(dx))}}, [&] {
    decltype(layer)::tape own;
    layer.forward(x, y, own, context);
    return (y.array() * dy.array()).sum() + own.loss();
  });
  INFO(report.describe());
  CHECK(report.checked > 60);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("transposed_layer: padding, NaN, no tokens, groups that do not fit", "[layer][transposed]") {
  const auto layer = token_mixing<float>();
  decltype(token_mixing<float>())::workspace workspace;
  matrix<float> x = test::random_matrix<float>(8, 3, 86), plain = x, y(8, 3), y2(8, 3);
  const std::vector<std::uint8_t> mask{1, 1, 0, 1, 1, 1, 1, 1};
  x.row(2).setConstant(quiet_nan<float>());  // padding may hold anything
  x(5, 1) = quiet_nan<float>();
  plain.row(2).setZero();
  plain.row(5).setZero();
  layer.forward(x, y, workspace, {.token_mask = mask, .groups = two_images});
  layer.forward(plain, y2, workspace, {.groups = two_images});
  CHECK(y.row(2).isZero(0));
  for (index_t c = 0; c < 3; ++c) CHECK(is_nan(y(5, c)));
  for (const index_t t : {0, 1, 3, 4, 6, 7}) CHECK(test::same_bits(matrix<float>(y.row(t)), matrix<float>(y2.row(t))));
  matrix<float> none(0, 3);
  layer.forward(none, none, workspace);
  CHECK_THROWS_WITH(layer.forward(x, y, workspace),
                    Catch::Matchers::Contains("N = 4") && Catch::Matchers::Contains("has 8"));
  CHECK_THROWS_WITH((transposed_layer{dense_layer{ffn<float, gelu>{4, 7, {.outputs = 5}}}, 3}),
                    Catch::Matchers::Contains("4 -> 5"));
}

TEST_CASE("transposed_layer: Sparse-MLP's block with one expert each is a Mixer block", "[layer][transposed]") {
  const index_t patches = 4, channels = 3;
  const auto norm = [&] { return layer_norm<double>{channels}; };
  const auto network = [](index_t width) { return expert_bank<ffn<double, gelu>>{1, width, 5}; };
  sequence block{residual_layer{normalized_layer{
                     transposed_layer{moe_layer{importance_score_router<double>{patches, 1}, network(patches)}, channels}, norm()}},
                 residual_layer{normalized_layer{moe_layer{importance_score_router<double>{channels, 1}, network(channels)}, norm()}}};
  initialize(block, 91);
  const matrix<double> x = test::random_matrix<double>(8, channels, 92);
  matrix<double> y(8, channels);
  decltype(block)::workspace workspace;
  block.forward(x, y, workspace, {.groups = two_images});

  const auto normed = [](const matrix<double>& m) {
    matrix<double> n = m.colwise() - m.rowwise().mean();
    for (index_t r = 0; r < n.rows(); ++r) n.row(r) /= std::sqrt(n.row(r).squaredNorm() / static_cast<double>(n.cols()) + 1e-5);
    return n;
  };
  const auto mlp = [](ffn<double, gelu>& f, const matrix<double>& m) {
    const matrix<double> up = f.up().to_matrix(), down = f.down().to_matrix();
    const matrix<double> hidden = (m * up.transpose()).unaryExpr([](double z) { return z * 0.5 * std::erfc(-z / std::sqrt(2.0)); });
    return matrix<double>(hidden * down.transpose());
  };
  for (index_t g = 0; g < 2; ++g) {
    matrix<double> image = x.middleRows(4 * g, 4);
    const matrix<double> items = normed(image).transpose();
    image += mlp(block.layer<0>().layer().layer().layer().bank().expert(0), items).transpose();
    image += mlp(block.layer<1>().layer().layer().bank().expert(0), normed(image));
    CHECK((y.middleRows(4 * g, 4) - image).cwiseAbs().maxCoeff() <= test::bound<double>(12, 10));
  }
}

TEST_CASE("transposed_layer: other numbers of tokens and channels inside are linear maps around them", "[layer][transposed]") {
  // Sparse-MLP's re-representation: 4 patches of 3 channels become 6 of 2 for a mixture whose items are patches.
  const index_t patches = 4, channels = 3, more = 6, fewer = 2;
  sequence layer{linear_layer<double>{channels, fewer},
                 transposed_layer{sequence{linear_layer<double>{patches, more},
                                           transposed_layer{moe_layer{top_k_router<double>{fewer, 2, {.top_k = 1, .weights = weighting::pre}},
                                                                      expert_bank<ffn<double, gelu>>{2, fewer, 5}},
                                                            more},
                                           linear_layer<double>{more, patches}},
                                  fewer},
                 linear_layer<double>{fewer, channels}};
  initialize(layer, 93);
  matrix<double> x = test::random_matrix<double>(8, channels, 94), y(8, channels), dx(8, channels);
  const matrix<double> dy = test::random_matrix<double>(8, channels, 95);
  decltype(layer)::tape tape;
  const routing_context<double> context{.training = true, .groups = two_images};
  zero_gradients(layer);
  layer.forward(x, y, tape, context);
  layer.backward(dy, dx, tape);
  const auto objective = [&]() -> std::optional<double> {
    decltype(layer)::tape other;
    layer.forward(x, y, other, context);
    return (y.array() * dy.array()).sum();
  };
  const auto report = check_gradients(layer, {{"x", {x.data(), as_size(x.size())}, {dx.data(), as_size(dx.size())}}}, objective);
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
}
