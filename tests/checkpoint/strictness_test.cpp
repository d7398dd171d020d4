// What turns a block away and what does not: strict about the block that is asked for, blind to everything else.
#include "../io/file_cases.hpp"
#include "../io/messages.hpp"
#include "small_models.hpp"

#include <sluice/checkpoint/layer_tensors.hpp>
#include <sluice/io/checkpoint_writer.hpp>

#include <limits>

using namespace sluice;
using test::contains;
using test::published_file;

namespace {

using layer_type = olmoe_layer<float>;
const std::string block_prefix = "model.layers.0.mlp.";

model_config config() { return test::small_config(model_family::olmoe); }

/// Block 0 of a small model, as BF16.
published_file small_file(std::uint64_t seed = 61) {
  published_file file;
  test::add_block(file, model_family::olmoe, "per-expert", test::small_weights(seed), 0, data_type::bf16);
  return file;
}

std::string complaint_of(const checkpoint_model& model, const layer_load_options& options = {}) {
  try {
    load_layer<layer_type>(model, {.layer = 0}, options);
  } catch (const file_error& error) {
    return error.what();
  }
  return {};
}

/// The file with one more tensor of a type by name.
void save_with(const published_file& file, const std::filesystem::path& path, const std::string& name,
               const std::string& type, std::size_t size) {
  file.save(path);
  const safetensors_reader saved(path);
  const std::vector<std::byte> bytes(size);
  safetensors_writer more;
  for (const tensor_info& t : saved.tensors()) more.add(t);
  more.add({name, data_type::other, {1}, bytes, type});
  const std::vector<std::byte> whole = more.to_bytes();
  test::write_bytes(path, std::string(reinterpret_cast<const char*>(whole.data()), whole.size()));
}

}  // namespace

TEST_CASE("strictness: tensors of unknown types are an error in the block only, and there they can be ignored",
          "[checkpoint]") {
  const test::temporary_folder folder;
  const auto path = folder / "m.safetensors";
  save_with(small_file(), path, "visual.freqs_cis", "C64", 8);
  test::check_holds(load_layer<layer_type>(checkpoint_model(path, config()), {.layer = 0}), test::small_weights(61));

  save_with(small_file(), path, block_prefix + "experts.0.scale", "F8_E8M0", 1);
  const checkpoint_model model(path, config());
  CHECK_THAT(complaint_of(model),
             contains("1 problem") && contains("left over \"" + block_prefix + "experts.0.scale\": F8_E8M0 [1]"));
  layer_load_report report;
  CHECK(complaint_of(model, {.ignored = {"*.up_proj.*"}, .report = &report}) == complaint_of(model));
  CHECK(report.ignored.empty());
  CHECK(complaint_of(model, {.ignored = {"nothing", "*.mlp.experts.?.scale"}, .report = &report}).empty());
  CHECK(report.ignored == std::vector<std::string>{block_prefix + "experts.0.scale"});
}

TEST_CASE("strictness: an ignored tensor that the layer needs is still needed", "[checkpoint]") {
  const test::temporary_folder folder;
  published_file file = small_file();
  file.tensors.erase(block_prefix + "gate.weight");
  file.save(folder / "m.safetensors");
  CHECK_THAT(complaint_of(checkpoint_model(folder / "m.safetensors", config()), {.ignored = {"*"}}),
             contains("missing \"" + block_prefix + "gate.weight\": the layer needs shape [4, 6]; it is not in the"));
}

TEST_CASE("strictness: what the index lists elsewhere may be absent, what it lists of the block may not",
          "[checkpoint]") {
  const test::temporary_folder folder;
  const published_file file = small_file();
  file.save(folder / "a.safetensors");
  const auto complain = [&](const std::string& name, const std::string& shard) {
    std::string entries = "\"" + name + "\":\"" + shard + '"';
    for (const auto& [tensor, content] : file.tensors)
      if (tensor != name) entries += ",\"" + tensor + "\":\"a.safetensors\"";
    test::write_bytes(folder / "model.safetensors.index.json", "{\"weight_map\":{" + entries + "}}");
    return complaint_of(checkpoint_model(folder / "model.safetensors.index.json", config()));
  };
  CHECK(complain("lm_head.weight", "absent.safetensors").empty());
  CHECK(complain("lm_head.weight", "a.safetensors").empty());
  CHECK(complain("model.layers.2.mlp.gate.weight", "absent.safetensors").empty());
  CHECK_THAT(complain(block_prefix + "experts.1.up_proj.weight", "absent.safetensors"),
             contains("1 problem") && contains("missing \"" + block_prefix + "experts.1.up_proj.weight\"") &&
                 contains("it is by the index in \"absent.safetensors\", which does not exist"));
  CHECK_THAT(complain(block_prefix + "experts.4.up_proj.weight", "a.safetensors"),
             contains("1 problem") && contains("left over \"" + block_prefix + "experts.4.up_proj.weight\": is in the index"));
  test::write_bytes(folder / "damaged.safetensors", "damaged");
  CHECK(complain("lm_head.weight", "damaged.safetensors").empty());
  CHECK_THAT(complain(block_prefix + "gate.weight", "damaged.safetensors"), contains("which cannot be read"));
}

TEST_CASE("strictness: counters that a training left in the block are passed over and named, other tensors are not",
          "[checkpoint]") {
  const test::temporary_folder folder;
  published_file file = small_file();
  file.add(block_prefix + "num_batches_tracked", {}, {7}, data_type::i64);
  file.add(block_prefix + "gate.expert_usage_count", {4}, {1, 2, 3, 4});
  file.add(block_prefix + "gate.tokens_per_expert", {4}, {1, 2, 3, 4}, data_type::i64);
  file.add(block_prefix + "gate._extra_state", {9}, std::vector<double>(9), data_type::i64);
  file.save(folder / "m.safetensors");
  layer_load_report report;
  CHECK(complaint_of(checkpoint_model(folder / "m.safetensors", config()), {.report = &report}).empty());
  CHECK(report.ignored == std::vector<std::string>{block_prefix + "gate._extra_state", block_prefix + "gate.expert_usage_count",
                                                   block_prefix + "gate.tokens_per_expert",
                                                   block_prefix + "num_batches_tracked"});

  file.add(block_prefix + "gate.bias_per_expert", {4}, {1, 2, 3, 4});
  file.add(block_prefix + "experts.counts", {5}, {1, 2, 3, 4, 5});
  file.add(block_prefix + "gate.live", {4}, {1, 1, 1, 0}, data_type::i64);
  file.save(folder / "m.safetensors");
  CHECK_THAT(complaint_of(checkpoint_model(folder / "m.safetensors", config())),
             contains("3 problems") && contains("gate.bias_per_expert") && contains("experts.counts") &&
                 contains("gate.live"));
}

TEST_CASE("strictness: storage of fewer bits takes rounded numbers and counts them, and none beyond its range",
          "[checkpoint]") {
  using half_layer = olmoe_layer<float, float16_storage>;
  const test::temporary_folder folder;
  const std::string expert = block_prefix + "experts.2.gate_proj.weight";
  published_file file = small_file();
  const auto load = [&](layer_load_report& report) {
    file.save(folder / "m.safetensors");
    const checkpoint_model model(folder / "m.safetensors", config());
    return load_layer<half_layer>(model, {.layer = 0}, {.report = &report});
  };
  file.tensors[expert].type = data_type::f32;
  file.tensors[expert].values[7] = 1 + 0x1p-12;
  layer_load_report report;
  half_layer layer = load(report);
  CHECK(report.values.total.rounded == 1);
  CHECK(report.values.total.largest_error == 0x1p-12);
  CHECK(report.values.worst == expert);

  file.tensors[expert].type = data_type::bf16;
  file.tensors[expert].values[7] = 65536;
  file.tensors[block_prefix + "experts.3.up_proj.weight"].values[0] = -1e30;
  file.tensors[block_prefix + "gate.weight"].values[0] = 1e30;  // the router is kept as float
  const layer_load_report before = report;
  CHECK_THROWS_WITH(load(report),
                    contains("2 problems") &&
                        contains("unfit \"" + expert + "\": 1 of 30 values is beyond F16, the largest 65536") &&
                        contains("unfit \"" + block_prefix + "experts.3.up_proj.weight\": 1 of 30 values is beyond F16"));
  CHECK(report.values == before.values);
  const auto held = layer.bank().expert(2).gate().to_matrix();
  const checkpoint_model model(folder / "m.safetensors", config());
  CHECK_THROWS_AS(load_layer_into(layer, model, {.layer = 0}), file_error);
  CHECK(test::same_bits(layer.bank().expert(2).gate().to_matrix(), held));
}

TEST_CASE("strictness: a selection bias that holds NaN would choose experts by their number, and is refused",
          "[checkpoint]") {
  const test::temporary_folder folder;
  published_file file;
  auto weights = test::small_weights(62);
  weights.selection_bias[2] = std::numeric_limits<double>::quiet_NaN();
  test::add_block(file, model_family::deepseek_v3, "per-expert", weights, 0, data_type::f32);
  file.save(folder / "m.safetensors");
  const checkpoint_model model(folder / "m.safetensors", test::small_config(model_family::deepseek_v3));
  CHECK_THROWS_WITH(load_layer<deepseek_v3_layer<float>>(model, {.layer = 0}),
                    contains("e_score_correction_bias\": 1 of 4 values is NaN"));
}

TEST_CASE("layer_tensors: state keeps the layer's type, losses are reported, and half's range is not left",
          "[checkpoint]") {
  const auto c = test::small_config(model_family::deepseek_v3);
  auto layer = make_published_layer<deepseek_v3_layer<float>>(c, {.layer = 0});
  const float fine = 1 + 0x1p-20F;
  layer.layer().router().bias()[1] = fine;
  layer.shared().down().value()[0] = fine;
  const tensor_names names(c, {.layer = 0});
  layer_tensors tensors(layer, names);
  tensors.set_type(data_type::f16);
  safetensors_writer file;
  tensors.add_to(file);
  const std::vector<std::byte> bytes = file.to_bytes();
  const auto saved = safetensors_reader::from_bytes(bytes, "saved");
  const std::string bias = names.place_of("router.rule.bias", 4, 1)->tensor;
  CHECK(saved.at(bias).dtype == data_type::f32);
  CHECK(saved.read_vector<float>(bias)[1] == fine);
  CHECK(tensors.report().total.rounded == 1);
  CHECK(tensors.report().total.largest_error == 0x1p-20);
  CHECK_THAT(tensors.report().worst, contains("shared_experts.down_proj.weight"));

  layer.shared().down().value()[0] = 65520;
  CHECK_THROWS_AS(file.to_bytes(), std::range_error);
  CHECK_THROWS_WITH(file.to_bytes(), contains("shared_experts.down_proj.weight") &&
                                         contains("1 of 42 values is beyond F16, the largest 65520"));
}
