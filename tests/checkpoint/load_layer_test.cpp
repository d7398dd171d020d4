#include "small_models.hpp"

using namespace sluice;
using test::published_file;

namespace {

template <typename Scalar, typename Storage = full_precision<Scalar>>
void check_loads(const checkpoint_model& model, const test::block_weights& weights) {
  with_published_type<Scalar, Storage>(model.config(), {.layer = 2}, [&]<typename Layer>(std::type_identity<Layer>) {
    test::check_holds(load_layer<Layer>(model, {.layer = 2}), weights);
  });
}

template <typename F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

bool holds(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("load_layer: every family in every layout it is published in, in every type", "[checkpoint]") {
  const test::temporary_folder folder;
  for (const auto& [family, layouts] : test::small_models())
    for (const std::string& layout : layouts)
      for (const data_type type : {data_type::f32, data_type::bf16, data_type::f64}) {
        CAPTURE(name_of(family), layout, name_of(type));
        published_file file;
        const auto weights = test::small_weights(17);
        test::add_block(file, family, layout, test::small_weights(16), 0, type);
        test::add_block(file, family, layout, weights, 2, type);
        file.add("model.embed_tokens.weight", {2, 2}, {1, 2, 3, 4});
        file.save(folder / "model.safetensors");
        const checkpoint_model model(folder / "model.safetensors", test::small_config(family));
        CHECK(model.names({.layer = 2}).layout().name == layout);
        check_loads<float>(model, weights);
        if (type != data_type::f32) continue;
        check_loads<double>(model, weights);
        check_loads<float, bfloat16_storage>(model, weights);
        check_loads<float, float16_storage>(model, weights);
      }
}

TEST_CASE("load_layer: Switch has blocks in its decoder too", "[checkpoint]") {
  const test::temporary_folder folder;
  published_file file;
  const auto encoder = test::small_weights(1), decoder = test::small_weights(2);
  test::add_block(file, model_family::switch_transformers, "per-expert", encoder, 1, data_type::f32);
  test::add_block(file, model_family::switch_transformers, "per-expert", decoder, 1, data_type::f32, true);
  file.save(folder / "m.safetensors");
  auto config = test::small_config(model_family::switch_transformers);
  config.moe_layers = {1};
  config.decoder_moe_layers = {1};
  const checkpoint_model model(folder / "m.safetensors", config);
  CHECK(model.blocks() == std::vector<block_id>{{1, false}, {1, true}});
  test::check_holds(load_layer<switch_layer<float>>(model, {1, false}), encoder);
  test::check_holds(load_layer<switch_layer<float>>(model, {1, true}), decoder);
}

TEST_CASE("load_layer: whatever is missing, different or left over is named, all in one error", "[checkpoint]") {
  const test::temporary_folder folder;
  published_file file;
  const auto weights = test::small_weights(3);
  test::add_block(file, model_family::olmoe, "per-expert", weights, 0, data_type::f32);
  const std::string p = "model.layers.0.mlp.";
  const auto message = [&](published_file changed) {
    changed.save(folder / "m.safetensors");
    const checkpoint_model model(folder / "m.safetensors", test::small_config(model_family::olmoe));
    return error_of([&] { load_layer<olmoe_layer<float>>(model, {.layer = 0}); });
  };
  CHECK(message(file).empty());

  published_file changed = file;
  changed.tensors.erase(p + "experts.3.down_proj.weight");
  changed.tensors[p + "experts.1.up_proj.weight"].shape = {6, 5};
  changed.tensors[p + "experts.2.up_proj.weight"].type = data_type::i64;
  changed.add(p + "experts.4.up_proj.weight", {5, 6}, std::vector<double>(30));
  changed.add(p + "shared_expert_gate.weight", {1, 6}, std::vector<double>(6));
  changed.add("model.layers.01.mlp.unrelated", {1}, {0});
  const std::string text = message(changed);
  CAPTURE(text);
  CHECK(holds(text, "m.safetensors"));
  CHECK(holds(text, "5 problems"));
  CHECK(holds(text, "missing \"" + p + "experts.3.down_proj.weight\": the layer needs shape [6, 5]"));
  CHECK(holds(text, "different \"" + p + "experts.1.up_proj.weight\": shape is [6, 5], the layer needs [5, 6]"));
  CHECK(holds(text, "different \"" + p + "experts.2.up_proj.weight\": is I64"));
  CHECK(holds(text, "left over \"" + p + "experts.4.up_proj.weight\""));
  CHECK(holds(text, "left over \"" + p + "shared_expert_gate.weight\""));
  CHECK_FALSE(holds(text, "unrelated"));
}

TEST_CASE("load_layer: an expert too many in a stack, a stack beside single experts", "[checkpoint]") {
  const test::temporary_folder folder;
  published_file file;
  test::add_block(file, model_family::qwen3_moe, "stacked", test::block_weights::random(5, 6, 5, 7, 4), 0,
                  data_type::f32);
  file.save(folder / "m.safetensors");
  const checkpoint_model model(folder / "m.safetensors", test::small_config(model_family::qwen3_moe));
  const auto load = [](const checkpoint_model& m) {
    return error_of([&] { load_layer<qwen3_moe_layer<float>>(m, {.layer = 0}); });
  };
  CHECK(holds(load(model), "experts.down_proj\": shape is [5, 6, 5], the layer needs [4, 6, 5]"));

  published_file both;
  test::add_block(both, model_family::qwen3_moe, "stacked", test::small_weights(5), 0, data_type::f32);
  test::add_block(both, model_family::qwen3_moe, "per-expert", test::small_weights(6), 0, data_type::f32);
  both.save(folder / "both.safetensors");
  const checkpoint_model two(folder / "both.safetensors", test::small_config(model_family::qwen3_moe));
  CHECK(holds(load(two), "left over \"model.layers.0.mlp.experts.down_proj\""));
}

TEST_CASE("load_layer: ignored tensors, blocks that are dense, types of another family", "[checkpoint]") {
  const test::temporary_folder folder;
  published_file file;
  const auto weights = test::small_weights(7);
  test::add_block(file, model_family::qwen2_moe, "per-expert", weights, 0, data_type::f32);
  file.add("model.layers.0.mlp.extra", {1}, {0});
  file.save(folder / "m.safetensors");
  const checkpoint_model model(folder / "m.safetensors", test::small_config(model_family::qwen2_moe));
  CHECK_THROWS_AS(load_layer<qwen2_moe_layer<float>>(model, {.layer = 0}), file_error);
  test::check_holds(load_layer<qwen2_moe_layer<float>>(model, {.layer = 0}, {.ignored = {"model.layers.0.mlp.extra"}}),
                    weights);
  CHECK(holds(error_of([&] { load_layer<qwen2_moe_layer<float>>(model, {.layer = 1}); }),
              "layers.1 is no mixture of experts; these are: layers.0 layers.2"));
  CHECK_THROWS_AS(load_layer<mixtral_layer<float>>(model, {.layer = 0}), std::invalid_argument);
}

TEST_CASE("load_layer: quantised files are refused by name", "[checkpoint]") {
  const test::temporary_folder folder;
  published_file file;
  test::add_block(file, model_family::gpt_oss, "stacked", test::small_weights(8), 0, data_type::f32);
  file.tensors.erase("model.layers.0.mlp.experts.gate_up_proj");
  file.add("model.layers.0.mlp.experts.gate_up_proj_blocks", {2}, {0, 0}, data_type::i64);
  file.save(folder / "m.safetensors");
  auto config = test::small_config(model_family::gpt_oss);
  config.quantization = "mxfp4";
  const checkpoint_model model(folder / "m.safetensors", config);
  const std::string text = error_of([&] { load_layer<gpt_oss_layer<float>>(model, {.layer = 0}); });
  CAPTURE(text);
  CHECK(holds(text, "quantised by mxfp4"));
  CHECK(holds(text, "missing \"model.layers.0.mlp.experts.gate_up_proj\""));
  CHECK(holds(text, "left over \"model.layers.0.mlp.experts.gate_up_proj_blocks\": I64 [2]"));
}

TEST_CASE("load_layer: equal bits for every thread count, and a failed load changes nothing",
          "[checkpoint][determinism]") {
  const test::temporary_folder folder;
  published_file file;
  const auto weights = test::block_weights::random(3, 150, 70, 7, 9);
  test::add_block(file, model_family::mixtral, "per-expert", weights, 0, data_type::f32);
  file.save(folder / "m.safetensors");
  auto config = test::small_config(model_family::mixtral);
  config.experts = 3, config.inputs = 150, config.hidden = 70;
  const checkpoint_model model(folder / "m.safetensors", config);
  for (const int threads : {1, 2, 3, 8}) {
    test::shuffled_threads executor{threads};
    struct seen {
      std::uint64_t done = 0, total = 0;
      int calls = 0;
    } progress;
    auto layer = load_layer<mixtral_layer<float>>(model, {.layer = 0},
                                                  {.executor = executor,
                                                   .progress =
                                                       [](void* user, std::uint64_t done, std::uint64_t total) {
                                                         auto& s = *static_cast<seen*>(user);
                                                         CHECK(done >= s.done);
                                                         s = {done, total, s.calls + 1};
                                                       },
                                                   .user = &progress});
    test::check_holds(layer, weights);
    CHECK(progress.calls >= 1);
    CHECK(progress.done == progress.total);

    published_file broken;
    test::add_block(broken, model_family::mixtral, "per-expert", test::block_weights::random(3, 150, 70, 7, 10), 0,
                    data_type::f32);
    broken.tensors.erase("model.layers.0.block_sparse_moe.experts.2.w2.weight");
    broken.save(folder / "broken.safetensors");
    const checkpoint_model other(folder / "broken.safetensors", config);
    CHECK_THROWS_AS(load_layer_into(layer, other, {.layer = 0}), file_error);
    test::check_holds(layer, weights);
  }
}
