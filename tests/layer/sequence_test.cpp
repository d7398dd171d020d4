#include <sluice/layer/sequence.hpp>

#include <sluice/expert/gated_ffn.hpp>
#include <sluice/kernel/row_norm.hpp>
#include <sluice/layer/beside.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/embedding.hpp>
#include <sluice/layer/linear.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/normalized.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/loss/importance.hpp>
#include <sluice/router/tokens_choose/noisy_top_k.hpp>
#include <sluice/train/initialize.hpp>
#if SLUICE_TEST_WITH_IO
#include <sluice/io/model_file.hpp>

#include "../io/temporary_folder.hpp"
#endif

#include "layer_promises.hpp"
#include "plain_checks.hpp"

using namespace sluice;

namespace {

template <typename Scalar>
auto some_block() {
  return residual_layer{normalized_layer{moe_layer{noisy_top_k_router<Scalar>{8, 4, {.top_k = 2}},
                                                   expert_bank<swiglu<Scalar>>{4, 8, 12}, importance_loss{}},
                                         rms_norm<Scalar>{8}}};
}

/// Two equal blocks between linear layers.
template <typename Scalar>
auto some_model() {
  sequence model{linear_layer<Scalar>{6, 8}, some_block<Scalar>(), some_block<Scalar>(), linear_layer<Scalar>{8, 5}};
  initialize(model, 1);
  return model;
}

}  // namespace

static_assert(TrainableLayer<decltype(some_model<float>())>);
static_assert(decltype(some_model<float>())::causal);

TEST_CASE("sequence: layer after layer", "[layer][sequence]") {
  auto model = some_model<float>();
  CHECK(model.inputs() == 6);
  CHECK(model.outputs() == 5);
  const matrix<float> x = test::random_matrix<float>(40, 6, 1);
  matrix<float> y(40, 5), a(40, 8), b(40, 8), c(40, 8), expected(40, 5);
  decltype(model)::workspace workspace, apart;
  model.forward(x, y, workspace);
  model.layer<0>().forward(x, a, std::get<0>(apart.layers));
  model.layer<1>().forward(a, b, std::get<1>(apart.layers));
  model.layer<2>().forward(b, c, std::get<2>(apart.layers));
  model.layer<3>().forward(c, expected, std::get<3>(apart.layers));
  CHECK(test::same_bits(y, expected));
  model.forward(x, y, workspace);
  CHECK(test::same_bits(y, expected));

  // A sequence of one layer is that layer, and sequences are layers.
  sequence nested{sequence{model.layer<0>()}, sequence{model.layer<1>(), model.layer<2>()}, model.layer<3>()};
  decltype(nested)::workspace other;
  nested.forward(x, y, other);
  CHECK(test::same_bits(y, expected));
}

TEST_CASE("sequence: every promise of a layer, with losses that add up", "[layer][sequence][conformance]") {
  test::check_layer_promises(some_model<double>(), 2);
  auto model = some_model<float>();
  const matrix<float> x = test::random_matrix<float>(6, 6, 2);
  matrix<float> y(6, 5);
  decltype(model)::tape tape;
  model.forward(x, y, tape);
  CHECK(tape.loss() == std::get<1>(tape.layers).loss() + std::get<2>(tape.layers).loss());
  CHECK(tape.loss() > 0);
}

TEST_CASE("sequence: equal layers draw apart, each as context.for_layer says", "[layer][sequence][random]") {
  using block = decltype(some_block<float>());
  block one = some_block<float>();
  initialize(one, 3);
  const sequence twice{one, one};
  const matrix<float> x = test::random_matrix<float>(30, 8, 4);
  matrix<float> y(30, 8), first(30, 8), second(30, 8);
  routing_context<float> context;
  context.training = true;
  context.random = random_source(7, 1);
  decltype(twice)::tape tape;
  twice.forward(x, y, tape, context);
  block::tape own;
  one.forward(x, first, own, context.for_layer(0));
  one.forward(first, second, own, context.for_layer(1));
  CHECK(test::same_bits(y, second));
  // With draws in common the layers' noises would be equal.
  const auto noise = [&](const auto& block_tape) {
    const auto& seen = block_tape.layer.layer.router.seen;
    return matrix<float>(seen.noisy().map() - seen.clean.map());
  };
  CHECK(test::largest_difference(noise(std::get<0>(tape.layers)), noise(std::get<1>(tape.layers))) > 0.1f);

  // What runs beside them draws apart from both; they draw as without it.
  const beside_layer three{twice, one};
  decltype(three)::tape beside;
  three.forward(x, first, beside, context);
  for (const auto& layer : {std::get<0>(beside.layer.layers), std::get<1>(beside.layer.layers)})
    CHECK(test::largest_difference(noise(layer), noise(beside.other)) > 0.1f);
  CHECK(test::same_bits(noise(std::get<0>(beside.layer.layers)), noise(std::get<0>(tape.layers))));
  CHECK(test::same_bits(noise(std::get<1>(beside.layer.layers)), noise(std::get<1>(tape.layers))));
}

TEST_CASE("sequence: padding and NaN stay with their token", "[layer][sequence][nan]") {
  sequence model{linear_layer<float>{6, 8}, residual_layer{dense_layer{swiglu<float>{8, 12}}}, linear_layer<float>{8, 5}};
  initialize(model, 1);
  test::check_spoiled_token(model);
}

TEST_CASE("sequence: no tokens, and what does not fit", "[layer][sequence]") {
  auto model = some_model<float>();
  test::check_edges(model);
  CHECK_THROWS_WITH((sequence{linear_layer<float>{6, 8}, linear_layer<float>{7, 5}}),
                    "sluice: layer 0 of the sequence gives 8 numbers a token, the next one reads 7");
}

TEST_CASE("sequence: one call rounds the experts of all layers, and bytes add up", "[layer][sequence]") {
  auto model = some_model<float>();
  const auto small = model.stored_as<bfloat16_storage>();
  const matrix<float> x = test::random_matrix<float>(3, 6, 5);
  matrix<float> y(3, 5), expected(3, 5);
  std::remove_cvref_t<decltype(small)>::workspace workspace;
  small.forward(x, y, workspace);
  sequence by_hand{model.layer<0>(), model.layer<1>().stored_as<bfloat16_storage>(),
                   model.layer<2>().stored_as<bfloat16_storage>(), model.layer<3>()};
  decltype(by_hand)::workspace other;
  by_hand.forward(x, expected, other);
  CHECK(test::same_bits(y, expected));
  CHECK(model.workspace_bytes(10) == 2 * model.layer<1>().workspace_bytes(10) + 2 * 10 * 8 * 4);
  CHECK(model.workspace_bytes(10, true) > model.workspace_bytes(10));
}

TEST_CASE("sequence: begins with an embedding, and is saved and loaded by name", "[layer][sequence]") {
  sequence model{embedding_layer<float>{9, 8}, some_block<float>(), linear_layer<float>{8, 9}};
  initialize(model, 6);
  std::vector<std::string> names;
  for_each_parameter(model, [&](const std::string& name, auto&) { names.push_back(name); });
  CHECK(names.front() == "0.table");
  CHECK(names[1] == "1.layer.layer.router.gate.weight");
  CHECK(names.back() == "2.bias");

  const std::vector<index_t> ids{3, 8, 0, 3};
  routing_context<float> context;
  context.token_ids = ids;
  matrix<float> y(4, 9), again(4, 9);
  decltype(model)::workspace workspace;
  model.forward(no_inputs<float>(4), y, workspace, context);
#if SLUICE_TEST_WITH_IO
  const test::temporary_folder folder;
  save(model, folder / "model.safetensors");
  decltype(model) other = model;
  initialize(other, 99);
  load(other, folder / "model.safetensors");
  other.forward(no_inputs<float>(4), again, workspace, context);
  CHECK(test::same_bits(again, y));
#endif
}
