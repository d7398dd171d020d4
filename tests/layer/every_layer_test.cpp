#include "every_layer.hpp"

#include <sluice/capacity/batch_priority.hpp>
#include <sluice/capacity/position.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/constant.hpp>
#include <sluice/expert/derived/compressed_bank.hpp>
#include <sluice/expert/derived/power_of_two.hpp>
#include <sluice/expert/factorized/matrix_product.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/neuron_bank.hpp>
#include <sluice/expert/normalized_bank.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/expert/union.hpp>
#include <sluice/gate/cosine.hpp>
#include <sluice/gate/normalized.hpp>
#include <sluice/layer/beside.hpp>
#include <sluice/layer/branches/shortcut.hpp>
#include <sluice/layer/branches/weighed.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/depth/repeated.hpp>
#include <sluice/layer/encoders/zero_gated.hpp>
#include <sluice/layer/merged/merged_layer.hpp>
#include <sluice/layer/depth/momentum.hpp>
#include <sluice/layer/depth/state_chain.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/normalized.hpp>
#include <sluice/layer/output_bias.hpp>
#include <sluice/layer/output_normalized.hpp>
#include <sluice/layer/reserve.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/layer/sequence.hpp>
#include <sluice/layer/shared_expert.hpp>
#include <sluice/layer/split/columns.hpp>
#include <sluice/layer/split/sub_tokens.hpp>
#include <sluice/loss/entropy.hpp>
#include <sluice/loss/importance.hpp>
#include <sluice/loss/load.hpp>
#include <sluice/loss/router_z.hpp>
#include <sluice/loss/switch_balance.hpp>
#include <sluice/router/auxiliary_choices.hpp>
#include <sluice/router/every_expert/dense_softmax.hpp>
#include <sluice/router/every_expert/soft_moe.hpp>
#include <sluice/router/experts_choose/expert_choice.hpp>
#include <sluice/router/over_training/compete.hpp>
#include <sluice/router/over_training/dselect_k.hpp>
#include <sluice/router/threshold/dynmoe.hpp>
#include <sluice/router/threshold/relu.hpp>
#include <sluice/router/tokens_choose/gshard_top2.hpp>
#include <sluice/router/tokens_choose/moe_plus_plus.hpp>
#include <sluice/router/tokens_choose/noisy_top_k.hpp>
#include <sluice/router/tokens_choose/product_key.hpp>
#include <sluice/router/tokens_choose/sigmoid_top_k.hpp>
#include <sluice/router/tokens_choose/sparse_mixer.hpp>
#include <sluice/router/tokens_choose/switch_top1.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

using namespace sluice;
using test::any_layer;
using test::every_layer;

namespace {

constexpr index_t width = any_layer::width, experts = 6;

template <typename Layer, typename Tape>
void infer_with(const Layer& layer, Tape& tape, tokens_in<float> x, tokens_out<float> y) {
  if constexpr (std::derived_from<Tape, typename Layer::workspace>)
    layer.forward(x, y, static_cast<typename Layer::workspace&>(tape));
  else if constexpr (requires { tape.layers; })
    infer_with(layer.template layer<0>(), std::get<0>(tape.layers), x, y);
  else if constexpr (requires { tape.rounds; })
    infer_with(layer.layer(0), tape.rounds.front(), x, y);
  else if (layer.layer().inputs() == layer.inputs())
    infer_with(layer.layer(), tape.layer, x, y);
  else {  // what is inside sees other tokens
    const matrix<float> in = matrix<float>::Zero(x.rows(), layer.layer().inputs());
    matrix<float> out(x.rows(), layer.layer().outputs());
    infer_with(layer.layer(), tape.layer, in, out);
  }
}

template <typename Layer>
class some_layer final : public any_layer {
public:
  explicit some_layer(Layer layer) : layer_(std::move(layer)) {}

  std::unique_ptr<any_layer> fresh() const override { return std::make_unique<some_layer>(layer_); }
  void infer(tokens_in<float> x, tokens_out<float> y, const routing_context<float>& context) override {
    layer_.forward(x, y, workspace_, context);
  }
  void train(tokens_in<float> x, tokens_out<float> y, const routing_context<float>& context) override {
    layer_.forward(x, y, tape_, context);
  }
  void backward(tokens_in<float> dy, tokens_out<float> dx) override { layer_.backward(dy, dx, tape_); }
  void after_step() override { layer_.after_step(tape_); }
  void infer_on_tape(tokens_in<float> x, tokens_out<float> y) override { infer_with(layer_, tape_, x, y); }
  void carry_tape(bool lose) override {
    typename Layer::tape copy = tape_;
    typename Layer::tape moved = std::move(copy);
    tape_ = lose ? copy : std::move(moved);
  }
  void backward_of_copy(tokens_in<float> dy, tokens_out<float> dx) override {
    Layer copy = layer_;
    copy.backward(dy, dx, tape_);
  }
  void reserve_workspace(index_t tokens, const routing_context<float>& context) override {
    reserve(std::as_const(layer_), workspace_, tokens, context);
  }
  void reserve_tape(index_t tokens, const routing_context<float>& context) override {
    reserve(layer_, tape_, tokens, context);
  }
  index_t calls_counted() override {
    index_t calls = 0;
    sluice::detail::for_each_memory(tape_, [&](const auto& own) {
      if constexpr (requires { own.statistics; }) calls = own.statistics.calls;
    });
    return calls;
  }
  void zero_gradients() override { sluice::zero_gradients(layer_); }
  std::vector<float> gradients() const override {
    return collect([](const auto& p) { return p.gradient(); });
  }
  std::vector<float> values() const override {
    return collect([](const auto& p) { return p.value(); });
  }

private:
  template <typename F>
  std::vector<float> collect(F&& numbers_of) const {
    std::vector<float> all;
    for_each_parameter(layer_, [&](const std::string&, const auto& p) {
      for (const float v : numbers_of(p)) all.push_back(v);
    });
    return all;
  }

  Layer layer_;
  typename Layer::workspace workspace_;
  typename Layer::tape tape_;
};

template <typename Router, typename... Losses>
auto layer_of(Router router, Losses... losses) {
  const index_t count = router.experts();
  return moe_layer{std::move(router), expert_bank<swiglu<float>>{count, width, 11, {.bias = true}}, losses...};
}

auto unlike_banks() {
  return expert_union{expert_bank<ffn<float>>{3, width, 5}, expert_bank<constant_expert<float>>(1, width),
                      expert_bank<identity_expert<float>>(1, width), expert_bank<zero_expert<float>>(1, width)};
}

auto unlike_widths() {
  std::vector<ffn<float, gelu>> bank;
  for (index_t e = 0; e < experts; ++e) bank.emplace_back(width, 3 + 9 * e);
  return expert_bank<ffn<float, gelu>>(std::move(bank));
}

/// As in Gemma 4.
auto branches() {
  const auto norm = [] { return rms_norm<float>{width, {.epsilon = 1e-6f}}; };
  normalized_gate gate{linear_gate<float>(width, experts), norm(), 0.4f};
  sigmoid_router<float, dynamic, dynamic, decltype(gate)> router{std::move(gate),
                                                                 {.scores = expert_scores::softmax, .expert_scale = true}};
  moe_layer mixture{std::move(router), normalized_bank{expert_bank<swiglu<float>>{experts, width, 11}, norm()}};
  return beside_layer{output_normalized_layer{std::move(mixture), norm()},
                      output_normalized_layer{normalized_layer{dense_layer{swiglu<float>{width, 7}}, norm()}, norm()}};
}

}  // namespace

std::vector<test::named_layer> test::every_layer(bool initialized) {
  std::vector<named_layer> all;
  const auto add = [&](const char* name, auto layer) {
    if (initialized) initialize(layer, 3);
    all.push_back({name, std::make_unique<some_layer<decltype(layer)>>(std::move(layer))});
  };
  const top_k_router<float> top_2{width, experts, {.top_k = 2}};
  add("top-k", layer_of(top_2));
  add("top-k, cosine gate", layer_of(top_k_router<float, dynamic, dynamic, cosine_gate<float>>{
                                cosine_gate<float>(width, experts), {.top_k = 2}}));
  add("noisy top-k, with losses",
      layer_of(noisy_top_k_router<float>{width, experts}, importance_loss{.source = importance_source::sparse_gates},
               load_loss{}, switch_balance{}, router_z_loss{}, entropy_loss{}));
  add("learned noise", layer_of(learned_noise_top_k_router<float>{width, experts}));
  add("Switch", layer_of(switch_router<float>{width, experts}));
  add("GShard", layer_of(gshard_router<float>{width, experts}));
  add("sigmoid", layer_of(sigmoid_router<float>{width, experts}));
  add("SparseMixer", layer_of(sparse_mixer_router<float>{width, experts}));
  add("expert choice", layer_of(expert_choice_router<float>{width, experts}));
  add("ReLU", layer_of(relu_router<float>{width, experts}));
  add("dense softmax", layer_of(dense_softmax_router<float>{width, experts}));
  add("dense softmax, a union", moe_layer{dense_softmax_router<float>{width, experts}, unlike_banks()});
  add("Soft MoE", layer_of(soft_moe_router<float>{width, experts}));
  add("DSelect-k", layer_of(dselect_k_router<float>{width, experts}));
  add("DynMoE", layer_of(top_any_router<float>{width, experts, {.schedule = {.period = 3, .window = 2}}}));
  add("competition", layer_of(compete_router{top_2, {.frequency = 0.5}}));
  add("PEER", moe_layer{product_key_router<float>{width, 4, {.heads = 2, .top_k = 3, .weights = product_key_weights::relu}},
                        neuron_bank<float>{16, width}});
  add("MoE++", moe_layer{moe_plus_plus_router<float, linear_gate<float>>{width, experts}, unlike_banks()});
  add("union, with a loss", moe_layer{top_2, unlike_banks(), importance_loss{}});
  add("experts of unlike widths", moe_layer{top_2, unlike_widths()});
  add("matrices of cores", moe_layer{top_2, matrix_product_bank<float>{{experts, {2, 3, 2}, {2, 2, 2}}}});
  add("powers of two", moe_layer{top_2, shift_bank<float>{{experts, width, 7}}});
  add("compressed experts",
      moe_layer{auxiliary_choices_router{top_k_router<float>{width, experts, {.top_k = 3, .weights = weighting::pre}}, 2},
                compressed_bank{expert_bank<swiglu<float>>{experts, width, 7}}});
  add("shared expert", shared_expert_layer{layer_of(top_2), swiglu<float>{width, 7}, gated});
  add("merged experts", merged_layer{layer_of(noisy_top_k_router<float>{width, experts}, importance_loss{})});
  add("output bias", output_bias_layer{layer_of(relu_router<float>{width, experts})});
  add("residual", residual_layer{normalized_layer{layer_of(top_2), rms_norm<float>{width}}});
  add("zero-gated", zero_gated_layer{layer_of(top_2)});
  add("sequence", sequence{layer_of(relu_router<float>{width, experts}), residual_layer{layer_of(top_2)}});
  add("taking turns", repeated_layers{std::vector{residual_layer{layer_of(top_2)}, residual_layer{layer_of(top_2)}}});
  add("normalised", normalized_layer{layer_of(top_2), rms_norm<float>{width}});
  add("side by side, between norms", branches());
  add("side by side, weighed", weighed_branches{layer_of(top_2), dense_layer{swiglu<float>{width, 7}}});
  add("on a shortcut", shortcut_layer{layer_of(top_2), rms_norm<float>{width}, dense_layer{swiglu<float>{width, 7}},
                                      residual_layer{dense_layer{ffn<float>{width, 7}}}});
  add("linked", state_chain{sequence{linked_layer{layer_of(top_2), momentum_step<float>{}},
                                     column_layers{residual_layer{dense_layer{ffn<float>{width, 7}}},
                                                   dense_layer{identity_expert<float>{width}}}},
                            width});
  static_assert(width % 2 == 0);
  add("sub-tokens", sub_token_layer{moe_layer{top_k_router<float>{width / 2, experts, {.top_k = 2}},
                                              expert_bank<swiglu<float>>{experts, width / 2, 11}},
                                    2});
  return all;
}

namespace {

routing_context<float> in_training(std::uint64_t step = 1) {
  routing_context<float> context;
  context.training = true;
  context.random = random_source(1, step);
  return context;
}

const index_t tokens = 37;

struct step_matrices {
  matrix<float> x = test::random_matrix<float>(tokens, width, 1);
  matrix<float> dy = test::random_matrix<float>(tokens, width, 2);
  matrix<float> y{tokens, width}, dx{tokens, width};
};

}  // namespace

TEST_CASE("every layer: a second backward call gives the same dx and adds its gradients", "[layer][tape]") {
  for (const auto& [name, layer] : every_layer()) {
    CAPTURE(name);
    step_matrices m;
    for (const std::uint64_t step : {1, 2, 3}) {  // some of them competitions
      layer->zero_gradients();
      layer->train(m.x, m.y, in_training(step));
      layer->backward(m.dy, m.dx);
      std::vector<float> doubled = layer->gradients();
      float largest = 0;
      for (float& g : doubled) {
        g *= 2;
        largest = std::max(largest, std::abs(g));
      }
      CHECK(largest > 0);
      matrix<float> again(tokens, width);
      layer->backward(m.dy, again);
      CHECK(test::same_bits(again, m.dx));
      const std::vector<float> got = layer->gradients();
      float worst = 0;
      for (std::size_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::abs(got[i] - doubled[i]));
      CHECK(worst <= test::bound<float>(tokens, largest));
    }
  }
}

TEST_CASE("every layer: another dy on the same tape gives what it gives alone", "[layer][tape]") {
  for (const auto& [name, layer] : every_layer()) {
    CAPTURE(name);
    step_matrices m;
    const matrix<float> other = test::random_matrix<float>(tokens, width, 3);
    layer->train(m.x, m.y, in_training());
    layer->backward(m.dy, m.dx);
    layer->backward(other, m.dx);
    const auto alone = layer->fresh();
    matrix<float> dx(tokens, width);
    alone->train(m.x, m.y, in_training());
    alone->backward(other, dx);
    CHECK(test::same_bits(m.dx, dx));
  }
}

TEST_CASE("every layer: y may be x itself", "[layer][alias]") {
  for (const auto& [name, layer] : every_layer()) {
    CAPTURE(name);
    step_matrices m;
    layer->infer(m.x, m.y);
    matrix<float> both = m.x;
    layer->infer(both, both);
    CHECK(test::same_bits(both, m.y));

    const auto in_place = layer->fresh();
    layer->train(m.x, m.y, in_training());
    layer->backward(m.dy, m.dx);
    matrix<float> dx(tokens, width);
    both = m.x;
    in_place->train(both, both, in_training());
    in_place->backward(m.dy, dx);
    CHECK(test::same_bits(both, m.y));
    CHECK(test::same_bits(dx, m.dx));
    CHECK(in_place->gradients() == layer->gradients());
  }
}

TEST_CASE("every layer: outputs that lie partly in inputs are refused, neighbours are not", "[layer][alias]") {
  for (const auto& [name, layer] : every_layer()) {
    CAPTURE(name);
    step_matrices m;
    matrix<float> large = test::random_matrix<float>(tokens + 1, 2 * width, 4);
    const auto x = large.block(0, 0, tokens, width);
    const auto shifted_row = large.block(1, 0, tokens, width);
    const auto shifted_column = large.block(0, 1, tokens, width);
    const auto beside = large.block(0, width, tokens, width);
    CHECK_THROWS_WITH(layer->infer(x, shifted_row), Catch::Matchers::Contains("y shares a part of its memory with x"));
    CHECK_THROWS_WITH(layer->train(x, shifted_column, in_training()),
                      Catch::Matchers::Contains("y shares a part of its memory with x"));
    CHECK_NOTHROW(layer->infer(x, beside));

    layer->train(m.x, m.y, in_training());
    CHECK_THROWS_WITH(layer->backward(m.dy, m.dy), Catch::Matchers::Contains("dx shares memory with dy"));
    CHECK_THROWS_WITH(layer->backward(x, shifted_row), Catch::Matchers::Contains("dx shares memory with dy"));
    CHECK_NOTHROW(layer->backward(x, beside));
  }
}

TEST_CASE("every layer: backward needs a training forward call just before it", "[layer][tape]") {
  const auto no_forward = Catch::Matchers::Contains("backward needs a training forward call");
  for (const auto& [name, layer] : every_layer()) {
    CAPTURE(name);
    step_matrices m;
    CHECK_THROWS_WITH(layer->backward(m.dy, m.dx), no_forward);
    CHECK_THROWS_WITH(layer->backward(m.dy.topRows(0), m.dx.topRows(0)), no_forward);

    layer->train(m.x, m.y, in_training());
    layer->infer_on_tape(m.x.topRows(5), m.y.topRows(5));
    CHECK_THROWS_WITH(layer->backward(m.dy, m.dx), no_forward);

    layer->train(m.x, m.y, in_training());
    CHECK_THROWS_WITH(layer->backward_of_copy(m.dy, m.dx), Catch::Matchers::Contains("another layer's"));
    CHECK_THROWS_AS(layer->backward(m.dy.topRows(5), m.dx.topRows(5)), std::invalid_argument);

    layer->backward(m.dy, m.dx);  // what was refused left the tape as it was
    const matrix<float> expected = m.dx;
    layer->carry_tape(false);
    layer->backward(m.dy, m.dx);
    CHECK(test::same_bits(m.dx, expected));
    layer->carry_tape(true);
    CHECK_THROWS_WITH(layer->backward(m.dy, m.dx), no_forward);

    layer->train(m.x.topRows(0), m.y.topRows(0), in_training());
    CHECK_NOTHROW(layer->backward(m.dy.topRows(0), m.dx.topRows(0)));
  }
}

TEST_CASE("every layer: one that nobody initialised throws, with the name of a parameter", "[layer][initialized]") {
  const auto unset = Catch::Matchers::Contains("nobody has set the parameter");
  for (const auto& [name, layer] : every_layer(false)) {
    CAPTURE(name);
    step_matrices m;
    CHECK_THROWS_WITH(layer->infer(m.x, m.y), unset);
    CHECK_THROWS_WITH(layer->train(m.x, m.y, in_training()), unset);
    CHECK_THROWS_WITH(layer->backward(m.dy, m.dx), Catch::Matchers::Contains("backward needs a training forward call"));
  }
}

TEST_CASE("moe_layer: parameters set in any way count as initialised", "[layer][initialized]") {
  const auto fresh = [] {
    return moe_layer{top_k_router<float>{width, 2}, expert_bank<ffn<float>>{2, width, 3, {.bias = true}}};
  };
  using layer_type = decltype(fresh());
  const auto runs = [](const layer_type& layer) {
    step_matrices m;
    layer_type::workspace workspace;
    layer.forward(m.x, m.y, workspace);
    return true;
  };
  layer_type layer = fresh();
  const auto set_experts = [&] {
    layer.bank().expert(0).up().fill([](index_t) { return 1.0f; });
    layer.bank().expert(0).down().assign(matrix<float>::Zero(width, 3));  // zeros on purpose are values
    layer.bank().expert(1).up().data()[0] = 1;
    layer.bank().expert(1).down().value()[0] = 1;
  };
  set_experts();
  CHECK_THROWS_WITH(runs(layer), Catch::Matchers::Contains("\"router.gate.weight\""));
  layer.router().gate().weight().map().setZero();
  CHECK(runs(layer));  // biases start at zero and need nothing

  const layer_type copy = layer;
  CHECK(runs(copy));
  layer.bank() = expert_bank<ffn<float>>{2, width, 3, {.bias = true}};
  CHECK_THROWS_WITH(runs(layer), Catch::Matchers::Contains("\"experts.0.up\""));
  CHECK_THROWS_WITH(layer.stored_as<bfloat16_storage>(), Catch::Matchers::Contains("nobody has set"));
  layer = copy;
  CHECK(runs(layer));
  CHECK_NOTHROW(layer.stored_as<bfloat16_storage>());
}

TEST_CASE("moe_layer: a plan that was exchanged after forward is no plan to go back by", "[layer][tape]") {
  moe_layer layer{top_k_router<float>{width, experts, {.top_k = 2}}, expert_bank<swiglu<float>>{experts, width, 11}};
  initialize(layer, 3);
  step_matrices m;
  decltype(layer)::tape tape;
  layer.forward(m.x, m.y, tape, in_training());
  tape.plan.reset(tokens, experts);
  tape.plan.add(0, 1, 1.0f);
  tape.plan.finish();
  CHECK_THROWS_WITH(layer.backward(m.dy, m.dx, tape), Catch::Matchers::Contains("plan had 74 rows"));
  decltype(layer)::workspace moved_from;
  layer.forward(m.x, m.y, moved_from);
  const auto plan = std::move(moved_from.plan);
  CHECK_THROWS_AS(layer.forward_planned(m.x, m.y, moved_from), std::invalid_argument);
}
