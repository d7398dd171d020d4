#include <sluice/layer/images/patch_experts.hpp>

#include <sluice/expert/activated.hpp>
#include <sluice/expert/images/convolution.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/linear.hpp>
#include <sluice/layer/sequence.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "../../support.hpp"

using namespace sluice;

TEST_CASE("patch_experts: all patches with weight 1 are an ordinary convolution and its mean", "[layer][images]") {
  const image_shape image{2, 4, 6};
  pmoe_layer<double> layer(image, window_shape::square(2, 2), 3, 5, /*patches=*/6, patch_gate::even);
  initialize(layer, 1);
  const matrix<double> x = test::random_matrix<double>(4, image.size(), 2);
  matrix<double> y(4, layer.outputs()), own(4, 5 * 6);
  decltype(layer)::workspace ws;
  layer.forward(x, y, ws);
  for (index_t e = 0; e < 3; ++e) {
    convolution_expert<double> filters(image, 5, window_shape::square(2, 2));
    filters.weight().assign(layer.bank().expert(e).weight().to_matrix());
    matrix<double> saved(4, filters.saved_columns());
    filters.forward(x, own, saved);
    for (index_t t = 0; t < 4; ++t)
      for (index_t w = 0; w < 5; ++w)
        CHECK(y(t, e * 5 + w) ==
              Approx(own.row(t).segment(w * 6, 6).cwiseMax(0).mean()).margin(test::bound<double>(8 * 6, 4)));
  }
}

TEST_CASE("patch_experts: where a patch stands in its image means nothing", "[layer][images]") {
  // Patches of one row: an image of four rows, turned upside down.
  pmoe_layer<double> layer({1, 4, 3}, {1, 3, 1, 0}, 2, 3, 2);
  initialize(layer, 3);
  const matrix<double> x = test::random_matrix<double>(3, 12, 4);
  matrix<double> turned(3, 12), y(3, 6), other(3, 6);
  for (index_t p = 0; p < 4; ++p) turned.middleCols(3 * p, 3) = x.middleCols(9 - 3 * p, 3);
  decltype(layer)::workspace ws;
  layer.forward(x, y, ws);
  layer.forward(turned, other, ws);
  CHECK(test::largest_difference(y, other) < test::bound<double>(12, 4));
}

TEST_CASE("patch_experts: keeps the promises of layers", "[layer][images]") {
  for (const auto form : {patch_gate::over_patches, patch_gate::over_taken}) {
    const auto mean = form == patch_gate::over_taken ? patch_mean::of_taken : patch_mean::of_all;
    pmoe_layer<double> layer({2, 4, 5}, {2, 2, 2, 1}, 3, 4, 3, form, mean);
    initialize(layer, 5);
    const auto report = check_layer(layer, {.tokens = 11, .gradient_tokens = 3});
    INFO(report.describe());
    CHECK(report.passed());
  }
}

TEST_CASE("patch_experts: any router and any experts, in a model", "[layer][images]") {
  using filters = convolution_expert<double>;
  const image_windows windows({1, 6, 6}, window_shape::square(3, 3));
  patch_experts_layer<top_k_router<double>, expert_bank<filters>, gelu> patches{
      top_k_router<double>{9, 3, {.top_k = 2}},
      expert_bank<filters>(3, filters({1, 3, 3}, 2, window_shape::square(2), {.bias = true})), windows};
  sequence model{patches, linear_layer<double>{3 * 8, 4}};
  initialize(model, 7);
  const auto report = check_layer(model, {.tokens = 9, .gradient_tokens = 3});
  INFO(report.describe());
  CHECK(report.passed());
}

TEST_CASE("patch_experts: refuses parts that do not fit", "[layer][images]") {
  CHECK_THROWS_WITH((patch_experts_layer{pmoe_router<float>(4, 2, 1), expert_bank<linear_expert<float>>(2, 4, 3),
                                         image_windows({1, 3, 3}, window_shape::square(3))}),
                    Catch::Contains("a window has 9 numbers; the router reads 4, the experts 4"));
}
