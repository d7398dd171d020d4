#include <sluice/checkpoint/tensor_names.hpp>

#include "../io/messages.hpp"
#include "small_models.hpp"

#include <sluice/checkpoint/layer_tensors.hpp>

#include <algorithm>

using namespace sluice;
using test::published_file;

namespace {

template <typename Layer>
std::string error_of(const checkpoint_model& model, const block_id& block) {
  try {
    load_layer<Layer>(model, block);
  } catch (const file_error& error) {
    return error.what();
  }
  return "";
}

/// The tensors of a file with something else in front of "layers.".
published_file under(const std::string& root, const published_file& file) {
  published_file moved;
  for (const auto& [name, t] : file.tensors)
    moved.add(root + name.substr(std::string("model.").size()), t.shape, t.values, t.type);
  return moved;
}

}  // namespace

TEST_CASE("tensor_names: prefixes of models of several parts and of training libraries", "[checkpoint]") {
  const test::temporary_folder folder;
  const auto weights = test::small_weights(31);
  published_file file;
  test::add_block(file, model_family::qwen3_moe, "per-expert", weights, 0, data_type::f32);
  for (const std::string wrapper : {"", "module.", "_orig_mod.", "base_model.model.", "module._orig_mod."})
    for (const std::string root : {"model.", "", "model.language_model.", "language_model.model.", "thinker.model."}) {
      CAPTURE(wrapper, root);
      under(wrapper + root, file).save(folder / "m.safetensors");
      const checkpoint_model model(folder / "m.safetensors", test::small_config(model_family::qwen3_moe));
      CHECK(model.names({.layer = 0}).root() == wrapper + root);
      test::check_holds(load_layer<qwen3_moe_layer<float>>(model, {.layer = 0}), weights);
    }
}

TEST_CASE("tensor_names: a prefix that is not known is named, and can be given", "[checkpoint]") {
  const test::temporary_folder folder;
  const auto weights = test::small_weights(32);
  published_file file;
  test::add_block(file, model_family::mixtral, "stacked-apart", weights, 0, data_type::f32);
  under("ema.student.", file).save(folder / "m.safetensors");
  const auto config = test::small_config(model_family::mixtral);
  const checkpoint_model unknown(folder / "m.safetensors", config);
  const std::string text = error_of<mixtral_layer<float>>(unknown, {.layer = 0});
  CHECK_THAT(text, test::contains("\"model.layers.0.block_sparse_moe.gate.weight\"; there is "
                                  "\"ema.student.layers.0.block_sparse_moe.gate.weight\": give \"ema.student.\""));
  CHECK(std::count(text.begin(), text.end(), '\n') == 0);
  const checkpoint_model model(folder / "m.safetensors", config, "ema.student.");
  test::check_holds(load_layer<mixtral_layer<float>>(model, {.layer = 0}), weights);
  // The prefix is meant: nothing else is tried.
  const checkpoint_model other(folder / "m.safetensors", config, "ema.teacher.");
  CHECK_THAT(error_of<mixtral_layer<float>>(other, {.layer = 0}), test::contains("\"ema.teacher.layers.0."));
  // Of a block that is nowhere, what is missing is listed.
  CHECK_THAT(error_of<mixtral_layer<float>>(unknown, {.layer = 2}),
             test::contains("missing \"model.layers.2.block_sparse_moe.gate.weight\""));
}

TEST_CASE("tensor_names: one layout among those of the same names is told by its shapes", "[checkpoint]") {
  const test::temporary_folder folder;
  const auto weights = test::small_weights(33);
  published_file file;
  test::add_block(file, model_family::qwen3_moe, "stacked-transposed", weights, 0, data_type::f32);
  under("model.language_model.", file).save(folder / "m.safetensors");
  const checkpoint_model model(folder / "m.safetensors", test::small_config(model_family::qwen3_moe));
  CHECK(model.names({.layer = 0}).layout().name == "stacked-transposed");
  test::check_holds(load_layer<qwen3_moe_layer<float>>(model, {.layer = 0}), weights);
}

TEST_CASE("tensor_names: Phi under the names of newer library versions", "[checkpoint]") {
  const test::temporary_folder folder;
  const auto weights = test::small_weights(34);
  published_file file;
  test::add_block(file, model_family::olmoe, "stacked", weights, 0, data_type::f32);  // model.layers.0.mlp.
  auto router = file.tensors.extract("model.layers.0.mlp.gate.weight");
  router.key() = "model.layers.0.mlp.router.weight";
  file.tensors.insert(std::move(router));
  file.save(folder / "m.safetensors");
  const checkpoint_model model(folder / "m.safetensors", test::small_config(model_family::phimoe));
  auto layer = load_layer<phimoe_layer<float>>(model, {.layer = 0});
  test::check_holds(layer, weights);
  const layer_tensors back(layer, model.names({.layer = 0}));
  for (const auto& [name, t] : file.tensors) CHECK(back.contains(name));
}

TEST_CASE("tensor_names: blocks behind the model's own predict further tokens", "[checkpoint]") {
  const test::temporary_folder folder;
  const auto own = test::small_weights(35), further = test::small_weights(36);
  auto config = test::small_config(model_family::deepseek_v3);
  config.next_token_layers = 1;
  published_file file;
  test::add_block(file, model_family::deepseek_v3, "per-expert", own, 0, data_type::f32);
  test::add_block(file, model_family::deepseek_v3, "per-expert", own, 2, data_type::f32);
  file.save(folder / "without.safetensors");
  test::add_block(file, model_family::deepseek_v3, "per-expert", further, 3, data_type::f32);
  file.save(folder / "with.safetensors");
  const checkpoint_model without(folder / "without.safetensors", config);
  CHECK(without.blocks() == std::vector<block_id>{{0}, {2}});
  CHECK_THAT(error_of<deepseek_v3_layer<float>>(without, {.layer = 3}),
             test::contains("layers.3 is no mixture of experts"));
  const checkpoint_model with(folder / "with.safetensors", config);
  CHECK(with.blocks() == std::vector<block_id>{{0}, {2}, {3}});
  test::check_holds(load_layer<deepseek_v3_layer<float>>(with, {.layer = 3}), further);

  // Qwen keeps them in a stack of their own.
  config = test::small_config(model_family::qwen2_moe);
  config.next_token_layers = 1;
  published_file qwen;
  test::add_block(qwen, model_family::qwen2_moe, "per-expert", further, 0, data_type::f32);
  under("mtp.", qwen).save(folder / "qwen.safetensors");
  const checkpoint_model behind(folder / "qwen.safetensors", config);
  CHECK(behind.blocks().back() == block_id{3});
  test::check_holds(load_layer<qwen2_moe_layer<float>>(behind, {.layer = 3}), further);
}

TEST_CASE("tensor_names: families with a shared expert in models that have none", "[checkpoint]") {
  const test::temporary_folder folder;
  const auto weights = test::small_weights(37);
  const auto model_of = [&](model_family family) {
    published_file file;
    test::add_block(file, family, "per-expert", weights, 0, data_type::f32);
    std::erase_if(file.tensors, [](const auto& t) { return t.first.find("shared") != std::string::npos; });
    file.save(folder / "m.safetensors");
    auto config = test::small_config(family);
    config.shared_hidden = 0;
    return checkpoint_model(folder / "m.safetensors", config);
  };
  for (const auto family : {model_family::deepseek_v2, model_family::qwen2_moe})
    test::check_holds(load_layer<mixtral_layer<float>>(model_of(family), {.layer = 0}), weights);
  test::check_holds(load_layer<scored_layer<float>>(model_of(model_family::deepseek_v3), {.layer = 0}), weights);
}

TEST_CASE("checkpoint_model: a config.json stands for its folder", "[checkpoint]") {
  const test::temporary_folder folder;
  const auto weights = test::small_weights(38);
  published_file file;
  test::add_block(file, model_family::olmoe, "per-expert", weights, 0, data_type::f32);
  file.save(folder / "model.safetensors");
  auto config = test::small_config(model_family::olmoe);
  config.moe_layers = {0, 1, 2};
  test::write_bytes(folder / "config.json", to_json(config));
  const checkpoint_model model(folder / "config.json");
  CHECK(model.config() == checkpoint_model(folder.path()).config());
  test::check_holds(load_layer<olmoe_layer<float>>(model, {.layer = 0}), weights);
}
