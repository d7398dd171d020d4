#include "../io/messages.hpp"
#include "small_models.hpp"

#include <sluice/checkpoint/convert.hpp>

#include <fstream>

using namespace sluice;
using test::published_file;

namespace {

/// Blocks 0 and 2 and two tensors that are none of theirs.
void write_model(const std::filesystem::path& path, model_family family, const std::string& layout, data_type type) {
  published_file file;
  test::add_block(file, family, layout, test::small_weights(41), 0, type);
  test::add_block(file, family, layout, test::small_weights(42), 2, type);
  file.add("model.embed_tokens.weight", {3, 2}, {1, 2, 3, 4, 5, 6}, type);
  file.add("model.positions", {2}, {7, 8}, data_type::i64);
  file.save(path);
}

template <typename Scalar>
void check_model(const std::filesystem::path& path, model_family family) {
  const checkpoint_model model(path, test::small_config(family));
  with_published_type<Scalar>(model.config(), [&]<typename Layer>(std::type_identity<Layer>) {
    test::check_holds(load_layer<Layer>(model, {.layer = 0}), test::small_weights(41));
    test::check_holds(load_layer<Layer>(model, {.layer = 2}), test::small_weights(42));
  });
}

}  // namespace

TEST_CASE("convert: from every layout into every other and back, bit for bit", "[checkpoint][convert]") {
  const test::temporary_folder folder;
  for (const auto& [family, layouts] : test::small_models())
    for (const std::string& from : layouts)
      for (const std::string& to : layouts) {
        CAPTURE(name_of(family), from, to);
        write_model(folder / "a.safetensors", family, from, data_type::bf16);
        const checkpoint_model a(folder / "a.safetensors", test::small_config(family));
        convert_checkpoint(a, folder / "b.safetensors", {.layout = to});
        check_model<float>(folder / "b.safetensors", family);
        const checkpoint_model b(folder / "b.safetensors", test::small_config(family));
        CHECK(b.names({.layer = 2}).layout().name == to);
        convert_checkpoint(b, folder / "c.safetensors", {.layout = from});
        const checkpoint_files c(folder / "c.safetensors");
        REQUIRE(c.tensors().size() == a.files().tensors().size());
        for (const located_tensor& t : a.files().tensors()) {
          CAPTURE(t.info.name);
          CHECK(std::ranges::equal(c.at(t.info.name).info.bytes, t.info.bytes));
          CHECK(c.at(t.info.name).info.shape == t.info.shape);
        }
      }
}

TEST_CASE("convert: types of all weights, and only of weights", "[checkpoint][convert]") {
  const test::temporary_folder folder;
  const auto from = GENERATE(data_type::f64, data_type::f32, data_type::bf16, data_type::f16);
  const auto to = GENERATE(data_type::f64, data_type::f32, data_type::bf16, data_type::f16);
  CAPTURE(name_of(from), name_of(to));
  write_model(folder / "a.safetensors", model_family::olmoe, "per-expert", from);
  const checkpoint_model a(folder / "a.safetensors", test::small_config(model_family::olmoe));
  convert_checkpoint(a, folder / "b.safetensors", {.type = to, .layout = "stacked"});
  check_model<float>(folder / "b.safetensors", model_family::olmoe);  // the numbers are bfloat16's, exact in every type
  const checkpoint_files b(folder / "b.safetensors");
  for (const located_tensor& t : b.tensors())
    CHECK(t.info.dtype == (t.info.name == "model.positions" ? data_type::i64 : to));
}

TEST_CASE("convert: many shards in a folder, with the config that names the new type", "[checkpoint][convert]") {
  const test::temporary_folder folder;
  write_model(folder / "model.safetensors", model_family::qwen3_moe, "per-expert", data_type::f32);
  auto config = test::small_config(model_family::qwen3_moe);
  auto json = nlohmann::ordered_json::parse(to_json(config));
  json["torch_dtype"] = "float32";
  std::ofstream(folder / "config.json") << json.dump();
  const checkpoint_model model(folder / "model.safetensors");
  convert_checkpoint(model, folder / "out", {.type = data_type::bf16, .shard_bytes = 300});
  const checkpoint_model out(folder / "out");
  CHECK(out.files().files().size() > 3);
  CHECK(out.config() == model.config());
  CHECK(nlohmann::json::parse(test::read_bytes(folder / "out" / "config.json")).at("torch_dtype") == "bfloat16");
  check_model<float>(folder / "out", model_family::qwen3_moe);
  // Onto itself.
  convert_checkpoint(out, folder / "out", {.layout = "stacked", .shard_bytes = 900});
  check_model<float>(folder / "out", model_family::qwen3_moe);
}

TEST_CASE("convert: what cannot be done is refused and nothing is written", "[checkpoint][convert]") {
  const test::temporary_folder folder;
  write_model(folder / "a.safetensors", model_family::olmoe, "per-expert", data_type::f64);
  const auto config = test::small_config(model_family::olmoe);
  const checkpoint_model model(folder / "a.safetensors", config);
  CHECK_THROWS_WITH(convert_checkpoint(model, folder / "b.safetensors", {.layout = "sideways"}),
                    test::contains("sideways") && test::contains("per-expert"));
  CHECK_THROWS_AS(convert_checkpoint(model, folder / "b.safetensors", {.type = data_type::i64}), std::invalid_argument);

  published_file broken;
  test::add_block(broken, model_family::olmoe, "per-expert", test::small_weights(43), 0, data_type::f64);
  test::add_block(broken, model_family::olmoe, "per-expert", test::small_weights(44), 2, data_type::f64);
  broken.tensors.erase("model.layers.2.mlp.experts.1.up_proj.weight");
  broken.tensors["model.layers.0.mlp.gate.weight"].values[3] = 1e300;
  broken.save(folder / "broken.safetensors");
  const checkpoint_model other(folder / "broken.safetensors", config);
  CHECK_THROWS_WITH(convert_checkpoint(other, folder / "b.safetensors", {.type = data_type::f32, .layout = "stacked"}),
                    test::contains("2 problems") &&
                        test::contains("missing \"model.layers.2.mlp.experts.1.up_proj.weight\"") &&
                        test::contains("unfit \"model.layers.0.mlp.gate.weight\": element 3 is 1e+300"));
  CHECK_FALSE(std::filesystem::exists(folder / "b.safetensors"));
}

TEST_CASE("convert: experts that go into one tensor are checked one by one", "[checkpoint][convert]") {
  const test::temporary_folder folder;
  published_file file;
  test::add_block(file, model_family::olmoe, "per-expert", test::small_weights(45), 0, data_type::f64);
  test::add_block(file, model_family::olmoe, "per-expert", test::small_weights(46), 2, data_type::f64);
  file.tensors["model.layers.0.mlp.experts.3.down_proj.weight"].values[5] = -1e300;
  file.tensors["model.layers.2.mlp.experts.2.up_proj.weight"].type = data_type::i64;
  file.save(folder / "a.safetensors");
  const checkpoint_model model(folder / "a.safetensors", test::small_config(model_family::olmoe));
  CHECK_THROWS_WITH(
      convert_checkpoint(model, folder / "b.safetensors", {.type = data_type::bf16, .layout = "stacked"}),
      test::contains("2 problems") &&
          test::contains("unfit \"model.layers.0.mlp.experts.3.down_proj.weight\": element 5 is -1e+300") &&
          test::contains(
              "different \"model.layers.2.mlp.experts.2.up_proj.weight\": is I64, cannot be put beside BF16"));
  CHECK_THROWS_WITH(convert_checkpoint(model, folder / "b.safetensors", {.layout = "stacked"}),
                    test::contains("1 problem:") && test::contains("is I64, cannot be put beside F64"));
  CHECK_FALSE(std::filesystem::exists(folder / "b.safetensors"));
}
