#include <sluice/adapter/slots.hpp>

#include <sluice/adapter/adapted.hpp>
#include <sluice/expert/linear.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

template <typename Layer>
matrix<double> slot_outputs(const Layer& layer, const matrix<double>& x, const routing_context<double>& context = {}) {
  matrix<double> y(x.rows(), layer.outputs());
  typename Layer::workspace workspace;
  layer.forward(x, y, workspace, context);
  return y;
}

template <typename Layer>
void draw_everything(Layer& layer, std::uint64_t seed) {
  for_each_parameter(layer, [&](const std::string&, auto& p) {
    p.assign(test::random_matrix<double>(p.rows(), p.cols(), ++seed) * 0.4);
  });
}

const std::vector<index_t> words_and_patches{0, 1, 1, 0, 1, 0, 0};

}  // namespace

TEST_CASE("soft_moa: nothing at first, and one slot gives every token one adapter's output", "[adapter][slots]") {
  auto layer = published::soft_moa<double>(4, 3, 1);
  initialize(layer, 60);
  const matrix<double> x = test::random_matrix<double>(5, 4, 61);
  CHECK(slot_outputs(layer, x).isZero(0));
  draw_everything(layer, 62);
  const matrix<double> y = slot_outputs(layer, x);
  const matrix<double> logits = x * layer.router().slot_vectors().to_matrix().transpose();
  const matrix<double> shares =
      (logits.array() - logits.maxCoeff()).exp() / (logits.array() - logits.maxCoeff()).exp().sum();
  const matrix<double> pooled = shares.transpose() * x;
  matrix<double> expected(1, 4), saved(1, 0);
  layer.bank().expert(0).forward(pooled, expected, saved);
  for (index_t t = 0; t < 5; ++t)
    CHECK(test::largest_difference(matrix<double>(y.row(t)), expected) <= test::bound<double>(12, 16.0));
}

TEST_CASE("slots_across_experts: each number by its length over the experts", "[adapter][slots]") {
  slots_across_experts<double> norm(2, 0.5);
  matrix<double> x(4, 1), y(4, 1);  // two experts of two slots
  x << 3, 0, 4, 0;
  slots_across_experts<double>::tape tape;
  norm.forward(x, y, tape, {});
  CHECK(std::abs(y(0, 0) - 3 / 5.5) <= test::bound<double>(4));
  CHECK(std::abs(y(2, 0) - 4 / 5.5) <= test::bound<double>(4));
  CHECK((y(1, 0) == 0 && y(3, 0) == 0));
  matrix<double> dy(4, 1), dx = matrix<double>::Zero(4, 1);
  dy << 1, 2, -1, 3;
  norm.backward(x, dy, tape, dx, {});
  const auto value = [&] {
    matrix<double> z(4, 1);
    slots_across_experts<double>::tape other;
    norm.forward(x, z, other, {});
    return z.cwiseProduct(dy).sum();
  };
  for (const index_t r : {0, 2}) CHECK(std::abs(test::slope_at(x(r, 0), value) - dx(r, 0)) < 1e-8);
  CHECK((dx(1, 0) == 4 && dx(3, 0) == 6));
  CHECK_THROWS_AS((slots_across_experts<double>{0}), std::invalid_argument);
  using router = soft_moe_router<double, no_norm<double>, slots_across_experts<double>>;
  CHECK_THROWS_WITH(
      (router{4, 3, {.slots_per_expert = 1}, no_norm<double>{}, slots_across_experts<double>{2}}),
      Catch::Contains("has 1 slots an expert") && Catch::Contains("for 2"));
}

TEST_CASE("slots: every promise of a layer", "[adapter][slots][conformance][gradient]") {
  std::vector<index_t> modality(37);
  for (std::size_t t = 0; t < modality.size(); ++t) modality[t] = static_cast<index_t>(t * 5 % 3 == 0);
  const std::vector<index_t> borders{0, 9, 20, 37};
  layer_check_options<double> options{.seed = 63, .gradient_tokens = 9};
  options.context.modality_ids = modality;
  options.context.groups = borders;
  const auto check_it = [&](auto layer) {
    draw_everything(layer, 64);
    const auto report = check_layer(layer, options);
    INFO(report.describe());
    CHECK(report.passed());
  };
  check_it(published::normalized_soft_moa<double>(4, 3, 3, 2));
  check_it(omni_slot_low_rank<double>(5, 2, 3, 0, 1, {.outputs = 4}));
}

TEST_CASE("modality_layer: sees its modality alone, and needs to know it", "[adapter][modality]") {
  modality_layer layer{slot_low_rank<double>(4, 2, 3), 1};
  draw_everything(layer, 65);
  matrix<double> x = test::random_matrix<double>(7, 4, 66);
  const routing_context<double> context{.modality_ids = words_and_patches};
  const matrix<double> y = slot_outputs(layer, x, context);
  matrix<double> patches(3, 4), of_patches(3, 4);
  patches << x.row(1), x.row(2), x.row(4);
  const matrix<double> expected = slot_outputs(layer.layer(), patches);
  of_patches << y.row(1), y.row(2), y.row(4);
  CHECK(test::largest_difference(of_patches, expected) <= test::bound<double>(12, 16.0));
  for (const index_t t : {0, 3, 5, 6}) CHECK(y.row(t).isZero(0));
  x.row(0) *= 7;
  CHECK(test::same_bits(slot_outputs(layer, x, context), y));
  CHECK_THROWS_WITH((modality_layer{slot_low_rank<double>(4, 2, 3), -1}),
                    Catch::Matchers::Contains("a modality >= 0, not -1"));
  CHECK_THROWS_AS(slot_outputs(layer, x), std::invalid_argument);
}

TEST_CASE("omni_slot_low_rank: the base at first, and text that does not see images in its own part",
          "[adapter][slots]") {
  adapted_layer layer{dense_layer{linear_expert<double>{4, 5, {.bias = true}}},
                      omni_slot_low_rank<double>(4, 2, 3, 0, 1, {.outputs = 5})};
  initialize(layer, 67);
  matrix<double> x = test::random_matrix<double>(7, 4, 68);
  const routing_context<double> context{.modality_ids = words_and_patches};
  const matrix<double> base = slot_outputs(layer.base(), x);
  CHECK(test::same_bits(slot_outputs(layer, x, context), base));
  draw_everything(layer.adapters().other(), 69);  // those of one modality
  const matrix<double> y = slot_outputs(layer, x, context);
  x.row(1) *= 3;  // a patch
  const matrix<double> z = slot_outputs(layer, x, context);
  for (const index_t t : {0, 3, 5, 6}) CHECK(test::same_bits(matrix<double>(y.row(t)), matrix<double>(z.row(t))));
  CHECK_FALSE(test::same_bits(matrix<double>(y.row(2)), matrix<double>(z.row(2))));
}
