#include <sluice/layer/decorator.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/bank_ref.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/lambda.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/normalized.hpp>
#include <sluice/layer/output_bias.hpp>
#include <sluice/layer/shared_expert.hpp>
#include <sluice/loss/importance.hpp>
#include <sluice/router/tokens_choose/sigmoid_top_k.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

#include <algorithm>
#include <string>
#include <vector>

using namespace sluice;

namespace {

/// The smallest wrapper: y = 2 layer(x).
template <typename Layer>
class doubled_layer : public layer_decorator<doubled_layer<Layer>, Layer> {
  using base = layer_decorator<doubled_layer, Layer>;
  friend base;

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;

  explicit doubled_layer(Layer layer) : base(std::move(layer)) {}

private:
  template <typename Memory, typename Inner>
  void around(tokens_in<scalar> x, tokens_out<scalar> y, Memory&, const context_type&, Inner inner) const {
    inner(x, y);
    y *= 2;
  }
  template <typename Inner>
  void around_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape&, Inner inner) {
    inner(dy, dx);
    dx *= 2;
  }
  template <typename Storage, typename Inner>
  auto rebuilt(Inner inner) const {
    return doubled_layer<Inner>(std::move(inner));
  }
};

auto inner_layer() {
  return moe_layer{top_k_router<float>{6, 4, {.top_k = 2}}, expert_bank<swiglu<float>>{4, 6, 5}, importance_loss{}};
}

using layer_type = decltype(inner_layer());
static_assert(TrainableLayer<doubled_layer<layer_type>>);
static_assert(TrainableLayer<shared_expert_layer<doubled_layer<layer_type>, swiglu<float>, true>>);
static_assert(TrainableLayer<output_bias_layer<layer_type>> && TrainableLayer<normalized_layer<layer_type, rms_norm<float>>>);

using read_only_bank = bank_ref<const expert_bank<swiglu<float>>>;
using read_only_layer = moe_layer<top_k_router<float>, read_only_bank>;
using read_only_expert = lambda_expert<float, detail::nothing_forward>;
static_assert(MixtureLayer<doubled_layer<read_only_layer>> && !TrainableLayer<doubled_layer<read_only_layer>>);
static_assert(!TrainableLayer<shared_expert_layer<layer_type, read_only_expert>>);
// Weights that are only read train nothing themselves, and do not keep the rest from it.
static_assert(TrainableLayer<decltype(inner_layer().stored_as<bfloat16_storage>())>);

template <typename Layer>
matrix<float> infer(const Layer& layer, const matrix<float>& x) {
  matrix<float> y(x.rows(), layer.outputs());
  typename Layer::workspace workspace;
  layer.forward(x, y, workspace);
  return y;
}

template <typename Object>
std::vector<std::string> names_of(const Object& object) {
  std::vector<std::string> names;
  for_each_parameter(object, [&](const std::string& name, const auto&) { names.push_back(name); });
  return names;
}

/// Rounds every matrix of experts to bfloat16, in place: what stored_as has to equal.
template <typename Layer>
void round_experts(Layer& layer) {
  for_each_parameter(layer, [](const std::string& name, auto& p) {
    if (name.find("experts.") == std::string::npos && name.find("shared.") == std::string::npos) return;
    const matrix<float> values = p.to_matrix();
    p.fill([&](index_t i) { return to_number(to_element<bfloat16>(values.data()[i])); });
  });
}

}  // namespace

TEST_CASE("layer_decorator: a wrapper has every call of the layer inside", "[layer][decorator]") {
  doubled_layer layer{inner_layer()};
  initialize(layer, 1);
  const matrix<float> x = test::random_matrix<float>(9, 6, 2), dy = test::random_matrix<float>(9, 6, 3);
  matrix<float> y(9, 6), inner_y(9, 6), again(9, 6), dx(9, 6), inner_dx(9, 6);

  decltype(layer)::tape tape;
  layer_type::tape inner_tape;
  layer.forward(x, y, tape);
  layer.layer().forward(x, inner_y, inner_tape);
  CHECK(test::same_bits(y, matrix<float>(2 * inner_y)));
  CHECK(tape.context.training);
  CHECK(tape.loss() == inner_tape.loss());
  CHECK(tape.loss() > 0);
  layer.backward(dy, dx, tape);
  layer.layer().backward(dy, inner_dx, inner_tape);
  CHECK(test::same_bits(dx, matrix<float>(2 * inner_dx)));

  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  CHECK(test::same_bits(infer(layer, x), y));
  layer.forward_planned(x, again, workspace);
  CHECK(test::same_bits(again, y));

  CHECK(tape.layer.statistics.calls == 1);
  layer.after_step(tape);
  CHECK(tape.layer.statistics.calls == 0);

  CHECK(&layer.router() == &layer.layer().router());
  CHECK(&layer.bank() == &layer.layer().bank());
  CHECK(&layer.loss<0>() == &layer.layer().loss<0>());
  CHECK(layer.workspace_bytes(18, true) == layer.layer().workspace_bytes(18, true));
  CHECK(layer.experts() == 4);
  CHECK(names_of(layer).front() == "layer.router.gate.weight");
  CHECK(names_of(layer).size() == names_of(layer.layer()).size());
}

TEST_CASE("layer_decorator: one call rounds the weights of every expert inside, and nothing else",
          "[layer][decorator][storage]") {
  normalized_layer layer{
      output_bias_layer{shared_expert_layer{doubled_layer{inner_layer()}, swiglu<float>{6, 9}, gated}},
      rms_norm<float>{6}};
  initialize(layer, 1);
  const matrix<float> x = test::random_matrix<float>(9, 6, 2);
  layer.layer().bias().fill([](index_t i) { return 0.3f * static_cast<float>(i + 1); });
  layer.norm().gain().fill([](index_t i) { return 0.7f + 0.1f * static_cast<float>(i); });

  const auto small = layer.stored_as<bfloat16_storage>();
  static_assert(std::same_as<std::remove_cvref_t<decltype(small.layer().layer().shared())>,
                             swiglu<float, bfloat16_storage>>);
  CHECK(names_of(small) == names_of(layer));
  const matrix<float> exact = infer(layer, x);
  round_experts(layer);
  CHECK(test::same_bits(infer(small, x), infer(layer, x)));
  CHECK_FALSE(test::same_bits(infer(layer, x), exact));
}

TEST_CASE("layer_decorator: a shared expert without a storage is copied", "[layer][decorator][storage]") {
  shared_expert_layer layer{inner_layer(), make_expert<float>(6, 6, [](auto x, auto y) { y = 2 * x; })};
  initialize(layer, 1);
  const matrix<float> x = test::random_matrix<float>(9, 6, 2);
  const auto small = layer.stored_as<bfloat16_storage>();
  const matrix<float> routed = infer(small.layer(), x);
  CHECK(test::largest_difference(infer(small, x), matrix<float>(routed + 2 * x)) <= test::bound<float>(1, 16));
}

TEST_CASE("layer_decorator: state that changes after a step is reached through wrappers", "[layer][decorator]") {
  output_bias_layer layer{doubled_layer{
      moe_layer{sigmoid_router<float>{6, 4, {.top_k = 1, .constant_weight = true, .bias_rate = 0.5f}},
                expert_bank<swiglu<float>>{4, 6, 5}}}};
  initialize(layer, 1);
  matrix<float> y(9, 6);
  decltype(layer)::tape tape;
  layer.forward(test::random_matrix<float>(9, 6, 2), y, tape);
  layer.after_step(tape);
  const auto bias = layer.router().bias();
  CHECK(std::any_of(bias.begin(), bias.end(), [](float b) { return b != 0; }));
}

TEST_CASE("layer_decorator: the memory of a wrapper's own parts is counted", "[layer][decorator]") {
  const normalized_layer normalized{inner_layer(), rms_norm<float>{6}};
  CHECK(normalized.workspace_bytes(8) == inner_layer().workspace_bytes(8) + 8 * 6 * 4);
  const shared_expert_layer shared{inner_layer(), ffn<float>{6, 9}};
  const expert_bank<ffn<float>> beside(1, 6, 9);
  CHECK(shared.workspace_bytes(8) ==
        inner_layer().workspace_bytes(8) + beside.workspace_bytes(8, false) + 8 * (6 + 6) * 4);
}
