#include "../io/messages.hpp"
#include "small_models.hpp"

#include <sluice/checkpoint/convert.hpp>

#include <cmath>
#include <fstream>
#include <limits>

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
  with_published_type<Scalar>(model.config(), {.layer = 0}, [&]<typename Layer>(std::type_identity<Layer>) {
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
  broken.save(folder / "broken.safetensors");
  const checkpoint_model other(folder / "broken.safetensors", config);
  for (const convert_options& how : {convert_options{.type = data_type::f32}, convert_options{.layout = "stacked"}})
    CHECK_THROWS_WITH(convert_checkpoint(other, folder / "b.safetensors", how),
                      test::contains("1 problem:") &&
                          test::contains("missing \"model.layers.2.mlp.experts.1.up_proj.weight\": an expert needs"));
  CHECK_FALSE(std::filesystem::exists(folder / "b.safetensors"));
}

TEST_CASE("convert: experts that go into one tensor are checked one by one", "[checkpoint][convert]") {
  const test::temporary_folder folder;
  published_file file;
  test::add_block(file, model_family::olmoe, "per-expert", test::small_weights(45), 0, data_type::f64);
  test::add_block(file, model_family::olmoe, "per-expert", test::small_weights(46), 2, data_type::f64);
  file.tensors["model.layers.0.mlp.experts.3.down_proj.weight"].values[5] = -1e300;
  file.tensors["model.layers.2.mlp.gate.weight"].values[0] = 1e39;
  const auto complaint = [&](const convert_options& how) {
    file.save(folder / "a.safetensors");
    const checkpoint_model model(folder / "a.safetensors", test::small_config(model_family::olmoe));
    try {
      convert_checkpoint(model, folder / "b.safetensors", how);
    } catch (const file_error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  CHECK_THAT(complaint({.type = data_type::bf16, .layout = "stacked"}),
             test::contains("2 problems") &&
                 test::contains("unfit \"model.layers.0.mlp.experts.down_proj\": 1 of 120 values is beyond BF16, the "
                                "largest 1e+300") &&
                 test::contains("unfit \"model.layers.2.mlp.gate.weight\": 1 of 24 values is beyond BF16"));
  file.tensors["model.layers.2.mlp.experts.2.up_proj.weight"].type = data_type::i64;
  for (const convert_options& how :
       {convert_options{.type = data_type::bf16, .layout = "stacked"}, convert_options{.layout = "stacked"},
        convert_options{.type = data_type::bf16}})
    CHECK_THAT(complaint(how),
               test::contains("1 problem:") &&
                   test::contains(
                       "different \"model.layers.2.mlp.experts.2.up_proj.weight\": is I64, holds no weights"));
  CHECK_FALSE(std::filesystem::exists(folder / "b.safetensors"));
}

TEST_CASE("convert: selection biases, running means and counters keep their type, and the report names them",
          "[checkpoint][convert]") {
  const test::temporary_folder folder;
  published_file file;
  const std::string p = "model.layers.0.mlp.";
  auto weights = test::small_weights(47);
  weights.selection_bias = {5.001, 5.002, 5.003, 5.004};
  test::add_block(file, model_family::deepseek_v3, "per-expert", weights, 0, data_type::f32);
  for (const char* const name : {"model.layers.3.mlp.gate.e_score_correction_bias", "visual.norm.running_mean"})
    file.add(name, {2}, {5.001, 5.002});
  file.add(p + "gate.expert_usage_count", {4}, {1e7, 16777217, 3, 4});
  file.save(folder / "a.safetensors");
  const checkpoint_model a(folder / "a.safetensors", test::small_config(model_family::deepseek_v3));
  const auto to = GENERATE(data_type::bf16, data_type::f64);
  const convert_report report = convert_checkpoint(a, folder / "b.safetensors", {.type = to});
  CHECK(report.values.total.rounded == 0);  // the weights are bfloat16's numbers
  const std::vector<std::string> state{p + "gate.e_score_correction_bias", p + "gate.expert_usage_count",
                                       "model.layers.3.mlp.gate.e_score_correction_bias", "visual.norm.running_mean"};
  CHECK(report.kept == state);
  const checkpoint_files b(folder / "b.safetensors");
  for (const located_tensor& t : b.tensors()) {
    CAPTURE(t.info.name);
    const bool is_state = std::find(state.begin(), state.end(), t.info.name) != state.end();
    CHECK(t.info.dtype == (is_state ? data_type::f32 : to));
    if (is_state) CHECK(std::ranges::equal(t.info.bytes, a.files().at(t.info.name).info.bytes));
  }

  file.tensors[p + "gate.e_score_correction_bias"].values.assign(4, std::numeric_limits<double>::quiet_NaN());
  file.save(folder / "nan.safetensors");
  const checkpoint_model broken(folder / "nan.safetensors", test::small_config(model_family::deepseek_v3));
  CHECK_THROWS_WITH(convert_checkpoint(broken, folder / "c.safetensors", {.type = to}),
                    test::contains("e_score_correction_bias\": 4 of 4 values are NaN"));
}

TEST_CASE("convert: what rounding costs is counted, and half's range is refused tensor by tensor",
          "[checkpoint][convert]") {
  const test::temporary_folder folder;
  published_file file;
  test::add_block(file, model_family::olmoe, "per-expert", test::small_weights(48), 0, data_type::bf16);
  const std::string expert = "model.layers.0.mlp.experts.1.down_proj.weight";
  const auto open = [&] {
    file.save(folder / "a.safetensors");
    auto config = test::small_config(model_family::olmoe);
    config.moe_layers = {0};
    return checkpoint_model(folder / "a.safetensors", config);
  };
  // 2^-24 is the smallest float16; half of it goes to the even 0, a little more does not. 0x1.02p-20 has one bit too
  // many.
  file.add("others", {6}, {0x1p-24, 0x1p-25, 0x1.02p-25, -0x1.02p-20, 65504, -0.0});
  const convert_report report = convert_checkpoint(open(), folder / "b.safetensors", {.type = data_type::f16});
  CHECK(report.values.total.rounded == 3);
  CHECK(report.values.total.to_zero == 1);
  CHECK(report.values.total.beyond == 0);
  CHECK(report.values.worst == "others");
  CHECK(report.values.total.largest_error == 0x1p-25);
  const auto others = safetensors_reader(folder / "b.safetensors").read_vector<double>("others");
  CHECK(others == std::vector<double>{0x1p-24, 0, 0x1p-24, -0x1p-20, 65504, -0.0});
  CHECK(std::signbit(others[5]));
  CHECK_THAT(to_string(report.values), test::contains("3 of ") && test::contains("1 of them to zero") &&
                                           test::contains("2.98023e-08 in \"others\""));

  // There and back in a type that holds all numbers: every byte is as it was.
  const convert_report wide = convert_checkpoint(open(), folder / "wide.safetensors", {.type = data_type::f32});
  CHECK(wide.values == conversion_report{});
  file.tensors["others"].type = data_type::bf16;
  const checkpoint_model a = open();
  convert_checkpoint(a, folder / "wide.safetensors", {.type = data_type::f64});
  convert_checkpoint(checkpoint_model(folder / "wide.safetensors", a.config()), folder / "back.safetensors",
                     {.type = data_type::bf16});
  const checkpoint_files back(folder / "back.safetensors");
  for (const located_tensor& t : a.files().tensors())
    CHECK(std::ranges::equal(back.at(t.info.name).info.bytes, t.info.bytes));

  file.tensors[expert].values[2] = 65536;
  file.tensors[expert].values[3] = -0x1p100;
  file.tensors["others"].type = data_type::f32;
  file.tensors["others"].values[0] = 1e5;
  std::filesystem::remove(folder / "b.safetensors");
  CHECK_THROWS_WITH(convert_checkpoint(open(), folder / "b.safetensors", {.type = data_type::f16}),
                    test::contains("2 problems:") &&
                        test::contains("unfit \"" + expert +
                                       "\": 2 of 30 values are beyond F16, the largest 1.26765e+30") &&
                        test::contains("unfit \"others\": 1 of 6 values is beyond F16"));
  CHECK_FALSE(std::filesystem::exists(folder / "b.safetensors"));
}

TEST_CASE("convert: coded weights are refused by name, unknown types elsewhere are copied", "[checkpoint][convert]") {
  const test::temporary_folder folder;
  published_file file;
  test::add_block(file, model_family::olmoe, "per-expert", test::small_weights(49), 0, data_type::bf16);
  file.save(folder / "whole.safetensors");
  const safetensors_reader whole(folder / "whole.safetensors");
  const std::string coded = "model.layers.0.mlp.experts.2.up_proj.weight";
  auto config = test::small_config(model_family::olmoe);
  config.moe_layers = {0};
  const std::vector<std::byte> bytes(30);
  const auto complaint = [&](const std::string& name, const std::string& type, const convert_options& how) {
    tensor_info other{name, data_type::other, {5, 6}, bytes, type};
    if (type == "F8_E4M3") other.dtype = data_type::f8_e4m3;
    safetensors_writer changed;
    for (const tensor_info& t : whole.tensors())
      if (t.name != name) changed.add(t);
    changed.add(other);
    changed.save(folder / "a.safetensors");
    try {
      convert_checkpoint(checkpoint_model(folder / "a.safetensors", config), folder / "b.safetensors", how);
    } catch (const file_error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  for (const convert_options& how : {convert_options{.type = data_type::bf16}, convert_options{.layout = "stacked"}}) {
    CHECK_THAT(complaint(coded, "F8_E4M3", how), test::contains('"' + coded + "\": is F8_E4M3, holds no weights"));
    CHECK_THAT(complaint(coded, "F4", how), test::contains('"' + coded + "\": is F4, holds no weights"));
    CHECK(complaint("visual.freqs_cis", "C64", how).empty());
  }
  for (const char* const type : {"F8_E4M3", "F8_E8M0", "F6_E2M3"})
    CHECK_THAT(complaint("self_attn.q", type, {.type = data_type::f32}),
               test::contains("\"self_attn.q\": is " + std::string(type) + ", cannot be converted to F32"));
  CHECK(complaint("self_attn.q", "F8_E4M3", {}).empty());  // a copy is exact
  CHECK(complaint("visual.freqs_cis", "C64", {.type = data_type::f32}).empty());
  const checkpoint_files b(folder / "b.safetensors");
  CHECK(b.at("visual.freqs_cis").info.type_name() == "C64");
  CHECK(std::ranges::equal(b.at("visual.freqs_cis").info.bytes, bytes));

  config.quantization = "fp8";
  CHECK_THAT(complaint("visual.freqs_cis", "C64", {.type = data_type::f32}), test::contains("quantised by \"fp8\""));
}

TEST_CASE("convert: tensors that the index lists and that are not there are refused by name", "[checkpoint][convert]") {
  const test::temporary_folder folder;
  write_model(folder / "a.safetensors", model_family::olmoe, "per-expert", data_type::bf16);
  std::string entries;
  const safetensors_reader whole(folder / "a.safetensors");
  for (const tensor_info& t : whole.tensors())
    entries += '"' + t.name + "\":\"a.safetensors\",";
  std::ofstream(folder / "model.safetensors.index.json")
      << "{\"weight_map\":{" << entries << "\"lost\":\"b.safetensors\"}}";
  const checkpoint_model model(folder / "model.safetensors.index.json", test::small_config(model_family::olmoe));
  CHECK_THROWS_WITH(convert_checkpoint(model, folder / "out", {.type = data_type::f32}),
                    test::contains("missing \"lost\": is by the index in \"b.safetensors\", which does not exist"));
}

TEST_CASE("convert: of a config only the type of weights changes, whatever else it holds", "[checkpoint][convert]") {
  const auto text = [](const std::string& type, const std::string& inner) {
    return R"({"a": NaN, "torch_dtype" : ")" + type + R"(", "deep": {"torch_dtype":")" + inner +
           R"(", "x": [-Infinity]}, "dtype": null, "quantization": {"dtype": "int4"},
  "s": "\"torch_dtype\": \"float16\"", "torch_dtype2": "float32"})";
  };
  CHECK(detail::with_weight_type(text("bfloat16", "float32"), "float64") == text("float64", "float64"));
}
