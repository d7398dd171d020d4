#include <sluice/layer/fixed.hpp>
#include <sluice/expert/clamped_glu.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

#include <cstring>
#include <memory>

using namespace sluice;

namespace {

/// Compares with the layer it was assigned from, at several numbers of tokens.
template <typename Fixed, typename Layer>
void check_equal(const Layer& layer, matrix<typename Fixed::scalar> x) {
  using scalar = typename Fixed::scalar;
  static_assert(std::is_trivially_copyable_v<Fixed> && std::is_trivially_copyable_v<typename Fixed::workspace>);
  const auto fixed = std::make_unique<Fixed>(layer);
  const auto copy = std::make_unique<Fixed>(*fixed);
  const auto scratch = std::make_unique<typename Fixed::workspace>();
  std::memset(static_cast<void*>(scratch.get()), 0x7f, sizeof *scratch);  // holds anything, also what was never written
  for (const index_t count : {Fixed::most_tokens(), index_t(1), index_t(0), index_t(5)}) {
    const matrix<scalar> part = x.topRows(count);
    matrix<scalar> expected(count, x.cols()), got = matrix<scalar>::Constant(count, x.cols(), 7);
    typename Layer::workspace workspace;
    layer.forward(part, expected, workspace);
    REQUIRE(copy->forward(test::span_of(part), test::span_of(got), *scratch));
    CHECK(test::same_bits(got, expected));
    matrix<scalar> in_place = part;
    REQUIRE(copy->forward(test::span_of(std::as_const(in_place)), test::span_of(in_place), *scratch));
    CHECK(test::same_bits(in_place, expected));
  }
}

/// Weights, and vectors that are zero at first, drawn.
template <typename Layer>
void draw(Layer& layer, std::uint64_t seed) {
  initialize(layer, seed);
  for_each_parameter(layer, [&](const std::string& name, auto& p) {
    if (name.ends_with("bias"))
      p.fill([&, n = name.size()](index_t i) { return 0.1f * std::sin(static_cast<float>(i + index_t(n))); });
  });
}

}  // namespace

TEST_CASE("fixed_moe_layer: equals the layer it was assigned from, bit for bit", "[layer][fixed]") {
  SECTION("SwiGLU, widths that fill whole vectors") {
    moe_layer layer{top_k_router<float>{16, 8, {.top_k = 2}}, expert_bank<swiglu<float>>{8, 16, 32}};
    draw(layer, 3);
    matrix<float> x = test::random_matrix<float>(64, 16, 4);
    check_equal<fixed_moe_layer<float, 16, 32, 8, 2, 64>>(layer, x);
    // NaN anywhere in a token, also where the gate's weights are zero; infinities; numbers whose products overflow.
    for (index_t t = 0; t < 16; ++t) x(2 * t, t) = quiet_nan<float>();
    constexpr float infinity = std::numeric_limits<float>::infinity();
    for (const index_t t : {33, 35, 37}) x(t, t - 33) = t == 35 ? -infinity : infinity;
    for (const index_t t : {40, 41}) x.row(t).setConstant(t == 40 ? 3e38f : -3e38f);
    check_equal<fixed_moe_layer<float, 16, 32, 8, 2, 64>>(layer, x);
    layer.router().gate().weight().fill([](index_t i) { return i % 3 == 0 ? 1.0f : 0.0f; });
    check_equal<fixed_moe_layer<float, 16, 32, 8, 2, 64>>(layer, x);
    layer.router().gate().weight().fill([](index_t) { return 0.0f; });
    check_equal<fixed_moe_layer<float, 16, 32, 8, 2, 64>>(layer, x);
  }
  SECTION("GELU with every bias, ragged widths, NaN, many tokens for one expert") {
    moe_layer layer{
        top_k_router<float, 3, 3>{linear_gate<float>{13, 3, {.bias = true}}, {.weights = weighting::pre, .scaling = 2.5f}},
        expert_bank<geglu<float>>{3, 13, 21, {.bias = true, .hidden_scale = true}}};
    draw(layer, 5);
    matrix<float> x = test::random_matrix<float>(150, 13, 6);
    x(2, 4) = std::numeric_limits<float>::quiet_NaN();
    check_equal<fixed_moe_layer<float, 13, 21, 3, 3, 150, geglu<float>>>(layer, x);
  }
  SECTION("one map, an odd number of panels, double, k = 1") {
    moe_layer layer{top_k_router<double>{9, 4, {.top_k = 1, .weights = weighting::post, .constant_weight = true}},
                    expert_bank<ffn<double, relu>>{4, 9, 40, {.bias = true}}};
    draw(layer, 7);
    check_equal<fixed_moe_layer<double, 9, 40, 4, 1, 20, ffn<double, relu>>>(layer, test::random_matrix<double>(20, 9, 8));
  }
  SECTION("sixteen-bit weights, a gating with options, a group limit") {
    moe_layer layer{
        top_k_router<float>{24, 8, {.top_k = 2, .weights = weighting::post, .groups = {.groups = 4, .kept = 2}}},
        expert_bank<clamped_glu<float>>{8, 24, 16, {.bias = true, .gating = {.alpha = 1.5f, .limit = 0.5f}}}};
    draw(layer, 9);
    const auto half = layer.stored_as<bfloat16_storage>();
    using half_expert = clamped_glu<float, bfloat16_storage>;
    check_equal<fixed_moe_layer<float, 24, 16, 8, 2, 32, half_expert>>(half, test::random_matrix<float>(32, 24, 10));
  }
}

TEST_CASE("fixed_moe_layer: says no to batches that do not fit, and leaves y alone", "[layer][fixed]") {
  static fixed_moe_layer<float, 4, 4, 2, 1, 3> layer;
  static decltype(layer)::workspace workspace;
  const std::vector<float> x(16, 1);
  std::vector<float> y(16, 7);
  const auto run = [&](std::size_t from, std::size_t to) {
    return layer.forward(std::span(x).first(from), std::span(y).first(to), workspace);
  };
  CHECK_FALSE(run(16, 16));
  CHECK_FALSE(run(8, 12));
  CHECK_FALSE(run(7, 7));
  CHECK(std::all_of(y.begin(), y.end(), [](float v) { return v == 7; }));
  CHECK(run(12, 12));
  CHECK(std::count(y.begin(), y.end(), 0.0f) == 12);  // all weights are zero
}

TEST_CASE("fixed_moe_layer: refuses a layer of another shape or routing", "[layer][fixed]") {
  using fixed = fixed_moe_layer<float, 4, 6, 2, 1, 3>;
  const auto made = std::make_unique<fixed>();
  const auto layer = [](index_t d, index_t h, index_t e, weight_application<float> a = {}) {
    using router = top_k_router<float>;
    moe_layer made_layer{router{linear_gate<float>{d, e}, {.top_k = 1, .weights = weighting::pre}, {}, {}, a},
                         expert_bank<swiglu<float>>{e, d, h}};
    initialize(made_layer, 11);
    return made_layer;
  };
  CHECK_NOTHROW(made->assign(layer(4, 6, 2)));
  CHECK_THROWS_AS(made->assign(layer(5, 6, 2)), std::invalid_argument);
  CHECK_THROWS_AS(made->assign(layer(4, 7, 2)), std::invalid_argument);
  CHECK_THROWS_AS(made->assign(layer(4, 6, 3)), std::invalid_argument);
  CHECK_THROWS_AS(made->assign(layer(4, 6, 2, {.use = weight_use::input})), std::invalid_argument);
  const moe_layer untouched{top_k_router<float>{4, 2, {.top_k = 1, .weights = weighting::pre}},
                            expert_bank<swiglu<float>>{2, 4, 6}};
  CHECK_THROWS_AS(made->assign(untouched), std::invalid_argument);
}
