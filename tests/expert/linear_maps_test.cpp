// Experts of other maps than ffn and gated_ffn have: views, mixed storages, one map, frozen and rounded weights.
#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/linear.hpp>
#include <sluice/kernel/block_storage.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/adamw.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "reference_step.hpp"
#include "support.hpp"

#include <vector>

using namespace sluice;

namespace {

constexpr index_t lanes_of_float = kernel::simd_width<float>;

/// Experts that share one first map, in bfloat16, of which each reads a part of its own, and own a last map in 8 bits.
struct shared_map_expert {
  using scalar = float;
  static constexpr int first_maps = 1;

  linear_map_view<bfloat16_storage> first;
  linear_map<int8_blocks> last;

  index_t inputs() const { return first.inputs(); }
  index_t outputs() const { return last.outputs(); }
  index_t saved_columns() const { return 0; }
  void forward(tokens_in<float>, tokens_out<float>, tokens_out<float>) const { FAIL("banks run maps"); }

  linear_map_view<bfloat16_storage> first_map(int) const { return first; }
  const linear_map<int8_blocks>& last_map() const { return last; }
  const float* output_bias() const { return nullptr; }
  kernel::simd<float> activate(index_t, const std::array<kernel::simd<float>, 1>& z) const {
    return detail::value_of<relu, float>(z[0]);
  }
};
static_assert(MadeOfLinearMaps<shared_map_expert> && !DifferentiableExpert<shared_map_expert>);

template <typename Expert>
auto layer_of(expert_bank<Expert> bank) {
  using scalar = typename Expert::scalar;
  moe_layer layer{top_k_router<scalar>{bank.inputs(), bank.experts(), {.top_k = 2}}, std::move(bank)};
  initialize(layer, 5);
  return layer;
}

/// What a training step sends to the tokens.
template <typename Layer>
matrix<float> dx_of(Layer& layer, const matrix<float>& x, const matrix<float>& dy) {
  typename Layer::tape tape;
  matrix<float> y(x.rows(), layer.outputs()), dx(x.rows(), layer.inputs());
  layer.forward(x, y, tape);
  layer.backward(dy, dx, tape);
  return dx;
}

}  // namespace

TEST_CASE("linear maps as views: a shared first map in parts, a last map of another storage", "[expert]") {
  const index_t hidden = 2 * lanes_of_float, inputs = 50, outputs = 37;
  linear_map<full_precision<float>> wide(2 * hidden, inputs);
  wide.weight().assign(test::random_matrix<float>(2 * hidden, inputs, 1) * 0.2F);
  const auto shared = wide.stored_as<bfloat16_storage>();
  std::vector<shared_map_expert> views;
  std::vector<ffn<float>> copies;
  const matrix<float> first = shared.weight().to_matrix();
  for (index_t e = 0; e < 3; ++e) {
    const index_t from = (e % 2) * (hidden / lanes_of_float);
    shared_map_expert& view = views.emplace_back();
    view.first = shared.view().part(from, hidden, inputs);
    view.last = linear_map<int8_blocks>(outputs, hidden);
    view.last.weight().assign(test::random_matrix<float>(outputs, hidden, 2 + static_cast<std::uint64_t>(e)));
    ffn<float>& copy = copies.emplace_back(inputs, hidden, ffn<float>::options{.outputs = outputs});
    copy.up().assign(matrix<float>(first.middleRows(from * lanes_of_float, hidden)));
    copy.down().assign(view.last.weight().to_matrix());
  }
  expert_bank<shared_map_expert> bank(std::move(views));
  const expert_bank<ffn<float>> full(std::move(copies));
  const matrix<float> x = test::random_matrix<float>(40, inputs, 9);
  const std::vector<index_t> offsets{0, 13, 14, 40};
  matrix<float> y(40, outputs), expected(40, outputs);
  decltype(bank)::tape tape;
  std::remove_cvref_t<decltype(full)>::tape full_tape;
  bank.forward(x, offsets, y, tape, {});
  full.forward(x, offsets, expected, full_tape, {});
  // Activations are rounded to 8 bits: half a step of the largest h, times the weights it meets.
  const float step = x.cwiseAbs().maxCoeff() * first.cwiseAbs().rowwise().sum().maxCoeff() / 127;
  const float weights = full.expert(0).last_map().weight().to_matrix().cwiseAbs().rowwise().sum().maxCoeff();
  CHECK(test::largest_difference(y, expected) <= step / 2 * weights * 2);
  CHECK(test::largest_difference(y, expected) > 0);
  for (const int threads : {2, 3, 7}) {
    test::shuffled_threads pool(threads);
    matrix<float> again(40, outputs);
    bank.forward(x, offsets, again, tape, pool);
    CHECK(test::same_bits(again, y));
  }
}

TEMPLATE_TEST_CASE("linear_expert: forward and backward equal the readable reference", "[expert]", float, double) {
  auto layer = layer_of(expert_bank<linear_expert<TestType>>{4, index_t(83), index_t(41), {.bias = true}});
  layer.bank().expert(1).bias().fill([](index_t i) { return static_cast<TestType>(0.01 * static_cast<double>(i)); });
  const matrix<TestType> x = test::random_matrix<TestType>(60, 83, 1);
  const matrix<TestType> dy = test::random_matrix<TestType>(60, 41, 2);
  test::check_against_reference(layer, x, dy, 2 * test::bound<TestType>(83, 4), test::bound<TestType>(60 + 83, 32));
}

TEST_CASE("linear_expert: every promise of a layer, with weights on outputs and on inputs", "[expert]") {
  for (const weight_use use : {weight_use::output, weight_use::input}) {
    moe_layer layer{top_k_router<double>{linear_gate<double>(7, 3), {.top_k = 2}, {}, {}, {.use = use}},
                    expert_bank<linear_expert<double>>{3, index_t(7), index_t(7), {.bias = true}}};
    initialize(layer, 6);
    const auto report = check_layer(layer);
    INFO(report.describe());
    CHECK(report.passed());
  }
}

TEST_CASE("frozen experts: no gradients, no memory for them, dx as before, bit for bit", "[expert]") {
  auto learned = layer_of(expert_bank<swiglu<float>>{4, 40, 70, {.bias = true}});
  auto frozen = learned;
  for (index_t e = 0; e < 4; ++e)
    for_each_parameter(frozen.bank().expert(e), [](const std::string&, parameter<float>& p) { p.set_frozen(true); });
  const matrix<float> x = test::random_matrix<float>(33, 40, 1), dy = test::random_matrix<float>(33, 40, 2);
  CHECK(test::same_bits(dx_of(frozen, x, dy), dx_of(learned, x, dy)));
  CHECK(test::same_bits(frozen.router().gate().weight().gradient_matrix(), learned.router().gate().weight().gradient_matrix()));
  CHECK(frozen.bank().expert(0).gate().gradient().empty());
  CHECK(frozen.bank().expert(0).down().gradient().empty());
  CHECK(!learned.bank().expert(0).down().gradient().empty());
  adamw<float> optimizer;
  const matrix<float> before = frozen.bank().expert(0).up().to_matrix();
  optimizer.step(frozen);
  CHECK(test::same_bits(frozen.bank().expert(0).up().to_matrix(), before));
  frozen.bank().expert(0).up().set_frozen(false);
  dx_of(frozen, x, dy);
  CHECK(!frozen.bank().expert(0).up().gradient().empty());
}

TEMPLATE_TEST_CASE("rounded experts: gradients pass through them to the router and to the tokens", "[expert]",
                   bfloat16_storage, float16_storage, int4_blocks, int8_blocks) {
  const auto learned = layer_of(expert_bank<swiglu<float>>{4, 40, 70, {.bias = true}});
  auto rounded = learned.template stored_as<TestType>();
  auto widened = rounded.template stored_as<full_precision<float>>();
  const matrix<float> x = test::random_matrix<float>(33, 40, 1), dy = test::random_matrix<float>(33, 40, 2);
  const matrix<float> dx = dx_of(rounded, x, dy), expected = dx_of(widened, x, dy);
  const matrix<float> gate = rounded.router().gate().weight().gradient_matrix();
  if constexpr (std::same_as<TestType, int8_blocks>) {
    // Its activations are rounded too, by up to 2^-8 of the largest of 32: of that size gradients differ, not more.
    CHECK(test::largest_difference(dx, expected) <= 0.02F * expected.cwiseAbs().maxCoeff());
  } else {
    CHECK(test::same_bits(dx, expected));
    CHECK(test::same_bits(gate, widened.router().gate().weight().gradient_matrix()));
  }
  CHECK(gate.cwiseAbs().maxCoeff() > 0);
  adamw<float> optimizer;
  const matrix<float> weights = rounded.router().gate().weight().to_matrix();
  const matrix<float> down = rounded.bank().expert(0).down().to_matrix();
  optimizer.step(rounded);
  CHECK(!test::same_bits(rounded.router().gate().weight().to_matrix(), weights));
  CHECK(test::same_bits(rounded.bank().expert(0).down().to_matrix(), down));
}
