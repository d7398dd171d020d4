// Whole models with quantised weights, in folders and GGUF files: what is loaded, and what is refused in one line.
#include <sluice/checkpoint/convert.hpp>
#include <sluice/io/gguf_writer.hpp>

#include "../io/messages.hpp"
#include "small_models.hpp"

#include <cstring>
#include <deque>
#include <fstream>

using namespace sluice;
using test::contains;

namespace {

using quantized_layer = qwen3_moe_layer<float>;
const std::string mlp_prefix = "model.layers.0.mlp.";

/// A Qwen3 mixture of two experts, D = 8, H = 16, in GPTQ's layout: all codes 9 less the zero 8 by the scale 0.5.
class gptq_model {
public:
  gptq_model() {
    add_floats(mlp_prefix + "gate.weight", {2, 8}, 0.25F);
    for (const std::string expert : {"experts.0.", "experts.1."}) {
      add_matrix(mlp_prefix + expert + "gate_proj", 8, 16);
      add_matrix(mlp_prefix + expert + "up_proj", 8, 16);
      add_matrix(mlp_prefix + expert + "down_proj", 16, 8);
    }
  }

  void add_matrix(const std::string& name, std::int64_t inputs, std::int64_t outputs) {
    add(name + ".qweight", {inputs / 8, outputs}, data_type::i32, 0x99999999U);
    add(name + ".qzeros", {1, outputs / 8}, data_type::i32, 0x77777777U);
    add_floats(name + ".scales", {1, outputs}, 0.5F);
  }
  void add_floats(const std::string& name, std::vector<std::int64_t> shape, float value) {
    add(name, std::move(shape), data_type::f32, std::bit_cast<std::uint32_t>(value));
  }
  void add_bytes(const std::string& name, std::vector<std::int64_t> shape, data_type type, std::uint8_t value) {
    tensors[name] = {std::move(shape), type, std::vector<std::byte>(256, static_cast<std::byte>(value))};
  }

  checkpoint_model open(const test::temporary_folder& place,
                        const std::string& quantization = R"("quant_method": "gptq", "bits": 4, "group_size": -1)") {
    safetensors_writer file;
    for (auto& [name, t] : tensors) {
      std::size_t size = size_of(t.type);
      for (const std::int64_t extent : t.shape) size *= as_size(extent);
      file.add(name, t.shape, t.type, std::span<const std::byte>(t.bytes).first(size));
    }
    file.save(place / "model.safetensors");
    std::ofstream(place / "config.json")
        << R"({"model_type": "qwen3_moe", "hidden_size": 8, "moe_intermediate_size": 16, "num_hidden_layers": 1,
"num_experts": 2, "num_experts_per_tok": 1, "norm_topk_prob": true, "quantization_config": {)"
        << quantization << "}}";
    return checkpoint_model(place.path());
  }

  struct stored {
    std::vector<std::int64_t> shape;
    data_type type;
    std::vector<std::byte> bytes;
  };
  std::map<std::string, stored> tensors;

private:
  void add(const std::string& name, std::vector<std::int64_t> shape, data_type type, std::uint32_t word) {
    std::vector<std::byte> bytes(4096);
    for (std::size_t i = 0; i < bytes.size(); i += 4) std::memcpy(bytes.data() + i, &word, 4);
    tensors[name] = {std::move(shape), type, std::move(bytes)};
  }
};

std::string quantized_complaint(const checkpoint_model& model, const layer_load_options& options = {}) {
  try {
    load_layer<quantized_layer>(model, {.layer = 0}, options);
  } catch (const file_error& error) {
    return error.what();
  }
  return {};
}

}  // namespace

TEST_CASE("quantised models: a folder is loaded, decoded", "[checkpoint][quantized]") {
  const test::temporary_folder folder;
  gptq_model model;
  quantized_layer layer = load_layer<quantized_layer>(model.open(folder), {.layer = 0});
  CHECK((layer.bank().expert(1).down().to_matrix().array() == 0.5F).all());
  CHECK((layer.bank().expert(0).gate().to_matrix().array() == 0.5F).all());
}

TEST_CASE("quantised models: half a layout is refused in a line that says what is wanted", "[checkpoint][quantized]") {
  const test::temporary_folder folder;
  const std::string up = mlp_prefix + "experts.1.up_proj";
  gptq_model model;
  model.tensors.erase(up + ".scales");
  CHECK_THAT(quantized_complaint(model.open(folder)),
             contains("1 problem (the model is quantised by gptq)") &&
                 contains("different \"" + up + ".weight\": needs \"" + up + ".scales\", which is not there"));
  model = gptq_model();
  model.tensors.erase(up + ".qzeros");
  CHECK_THAT(quantized_complaint(model.open(folder)), contains("1 problem (") && contains(up + ".qzeros\", which"));
  model = gptq_model();
  model.tensors[up + ".qzeros"].shape = {2, 2};
  CHECK_THAT(quantized_complaint(model.open(folder)), contains("qzeros\" is I32 [2, 2], must be I32 [1, 2]"));
  model = gptq_model();
  model.tensors.erase(up + ".qweight");
  CHECK_THAT(quantized_complaint(model.open(folder)),
             contains("missing \"" + up + ".weight\"") && contains("left over \"" + up + ".scales\""));
}

TEST_CASE("quantised models: scales in a type that weights have are scales", "[checkpoint][quantized]") {
  const test::temporary_folder folder;
  gptq_model model;
  const std::string up = mlp_prefix + "experts.1.up_proj";
  for (const char* const part : {".qweight", ".qzeros", ".scales"}) model.tensors.erase(up + part);
  std::erase_if(model.tensors, [](const auto& t) { return t.first.find("down_proj") != std::string::npos; });
  for (const std::string expert : {"experts.0.", "experts.1."}) {  // of 16 inputs: one group each
    model.add_bytes(mlp_prefix + expert + "down_proj.weight_packed", {8, 8}, data_type::u8, 0x22);
    model.add_bytes(mlp_prefix + expert + "down_proj.weight_scale", {8, 1}, data_type::f8_e4m3, 0x38);
    model.add_floats(mlp_prefix + expert + "down_proj.weight_global_scale", {1}, 0.25F);
  }
  model.add_floats(up + ".weight", {16, 8}, 1);
  layer_load_report report;
  quantized_layer layer = load_layer<quantized_layer>(model.open(folder), {.layer = 0}, {.report = &report});
  CHECK((layer.bank().expert(1).down().to_matrix().array() == 4).all());
  CHECK((layer.bank().expert(1).up().to_matrix().array() == 1).all());  // layouts may differ from matrix to matrix
  CHECK((layer.bank().expert(0).up().to_matrix().array() == 0.5F).all());
  CHECK(report.ignored.empty());
}

TEST_CASE("quantised models: what the config says decides, and what is unknown is said", "[checkpoint][quantized]") {
  const test::temporary_folder folder;
  gptq_model model;
  CHECK_THAT(quantized_complaint(model.open(folder, R"("quant_method": "exl2", "bits": 4.25)")),
             contains("is a layout of GPTQ or AWQ, but the config's quant_method is \"exl2\""));
  CHECK_THAT(
      quantized_complaint(model.open(folder, R"("quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin")")),
      contains("is in the format \"marlin\"; only \"gptq\" and \"gptq_v2\" are read"));
  CHECK_THAT(quantized_complaint(model.open(folder, R"("quant_method": "gptq")")), contains("the config does not say how many bits"));
  CHECK_THAT(quantized_complaint(model.open(folder, R"("quant_method": "gptq", "bits": 4, "group_size": 4)")),
             contains("8 inputs in groups of 4 make 2 groups"));
}

TEST_CASE("quantised models: what chooses experts is never quantised", "[checkpoint][quantized]") {
  const test::temporary_folder folder;
  gptq_model model;
  model.add_bytes(mlp_prefix + "gate.weight", {2, 8}, data_type::f8_e4m3, 0x38);
  model.add_floats(mlp_prefix + "gate.weight_scale_inv", {1, 1}, 1);
  CHECK_THAT(quantized_complaint(model.open(folder)),
             contains("1 problem") && contains("gate.weight\": is quantised, FP8; what chooses experts must not be"));
}

TEST_CASE("quantised models: twice is an error, another block's damage is none, scales of activations are passed over",
          "[checkpoint][quantized]") {
  const test::temporary_folder folder;
  gptq_model model;
  model.add_floats(mlp_prefix + "experts.0.up_proj.weight", {16, 8}, 1);
  CHECK_THAT(quantized_complaint(model.open(folder)), contains("is there twice, as F32 and as GPTQ int4") ||
                                                          contains("is there twice, as GPTQ int4 and as F32"));
  model = gptq_model();
  model.add_bytes("model.layers.1.mlp.gate.weight", {2, 8}, data_type::f8_e4m3, 0);
  model.add_floats(mlp_prefix + "experts.0.up_proj.input_scale", {1}, 1);
  layer_load_report report;
  CHECK(quantized_complaint(model.open(folder), {.report = &report}).empty());
  CHECK(report.ignored == std::vector<std::string>{mlp_prefix + "experts.0.up_proj.input_scale"});
}

namespace {

/// The same block as a GGUF file of float16 and float32.
class gguf_block {
public:
  gguf_block() {
    for (std::size_t i = 0; i < numbers_.size(); ++i) numbers_[i] = static_cast<float>(i % 97) / 16;
    for (const float v : numbers_) halves_.push_back(round_to<float16>(v));
  }
  void add_keys(gguf_writer& file) const {
    file.key("general.architecture", "qwen3moe");
    file.key("qwen3moe.embedding_length", std::uint32_t{8});
    file.key("qwen3moe.block_count", std::uint32_t{1});
    file.key("qwen3moe.expert_count", std::uint32_t{2});
    file.key("qwen3moe.expert_used_count", std::uint32_t{1});
    file.key("qwen3moe.expert_feed_forward_length", std::uint32_t{16});
  }
  void add_router(gguf_writer& file) const {
    file.add("blk.0.ffn_gate_inp.weight", {2, 8}, ggml_type::f32, std::as_bytes(std::span(numbers_).first(16)));
  }
  void add_experts(gguf_writer& file) const {
    const auto stack = std::as_bytes(std::span(halves_).first(256));
    file.add("blk.0.ffn_gate_exps.weight", {2, 16, 8}, ggml_type::f16, stack);
    file.add("blk.0.ffn_up_exps.weight", {2, 16, 8}, ggml_type::f16, stack);
    file.add("blk.0.ffn_down_exps.weight", {2, 8, 16}, ggml_type::f16, stack);
  }
  bool is_in(quantized_layer& layer) const {
    const auto down = layer.bank().expert(1).down().to_matrix();
    const auto up = layer.bank().expert(1).up().to_matrix();
    return down(7, 15) == numbers_[255] && up(0, 1) == numbers_[129] &&
           layer.router().gate().weight().to_matrix()(1, 0) == numbers_[8];
  }

private:
  std::vector<float> numbers_ = std::vector<float>(256);
  std::vector<float16> halves_;
};

}  // namespace

TEST_CASE("GGUF models: a file, its folder and a split of it are one model", "[checkpoint][gguf]") {
  const gguf_block block;
  const test::temporary_folder folder;
  gguf_writer whole;
  block.add_keys(whole);
  block.add_router(whole);
  block.add_experts(whole);
  whole.save(folder / "m.gguf");
  test::write_bytes(folder / "config.json", "{}");  // of another program: the keys of the file count
  for (const auto& path : {folder / "m.gguf", folder.path()}) {
    quantized_layer layer = load_layer<quantized_layer>(checkpoint_model(path), {.layer = 0});
    CHECK(block.is_in(layer));
  }

  const test::temporary_folder parts;
  const auto save = [&](const char* name, std::uint16_t number, auto&& add) {
    gguf_writer file;
    if (number == 0) block.add_keys(file);
    file.key("split.count", std::uint16_t{2});
    file.key("split.no", number);
    if (number == 0) file.key("split.tensors.count", std::int32_t{4});
    add(file);
    file.save(parts / name);
  };
  save("s-00001-of-00002.gguf", 0, [&](gguf_writer& f) { block.add_router(f); });
  CHECK_THROWS_WITH(checkpoint_model(parts.path()), contains("s-00002-of-00002.gguf\": cannot be opened"));
  save("s-00002-of-00002.gguf", 1, [&](gguf_writer& f) { block.add_experts(f); });
  for (const auto& path : {parts / "s-00001-of-00002.gguf", parts / "s-00002-of-00002.gguf", parts.path()}) {
    quantized_layer layer = load_layer<quantized_layer>(checkpoint_model(path), {.layer = 0});
    CHECK(block.is_in(layer));
  }
  save("s-00002-of-00002.gguf", 0, [&](gguf_writer& f) { block.add_experts(f); });
  CHECK_THROWS_WITH(checkpoint_model(parts.path()), contains("key \"split.no\": does not say 1"));
  save("s-00002-of-00002.gguf", 1, [&](gguf_writer& f) { block.add_router(f); });
  CHECK_THROWS_WITH(checkpoint_model(parts.path()), contains("\"split.tensors.count\": does not say 2"));
  test::write_bytes(parts / "other.gguf", "");
  CHECK_THROWS_WITH(checkpoint_model(parts.path()), contains("2 models in .gguf files"));
}

TEST_CASE("GGUF models: they are not written as safetensors files", "[checkpoint][gguf]") {
  const gguf_block block;
  const test::temporary_folder folder;
  gguf_writer file;
  block.add_keys(file);
  block.add_router(file);
  block.add_experts(file);
  file.save(folder / "m.gguf");
  const checkpoint_model model(folder / "m.gguf");
  CHECK_THROWS_WITH(convert_checkpoint(model, folder / "m.safetensors", {}), contains("a GGUF file"));
  CHECK_THROWS_WITH(convert_checkpoint(model, folder / "m.safetensors", {.type = data_type::f32}),
                    contains("quantised by \"gguf\": such weights cannot be converted"));
  CHECK(!std::filesystem::exists(folder / "m.safetensors"));
}

TEST_CASE("GGUF models: what a block lacks, and what nothing takes, is listed", "[checkpoint][gguf]") {
  const gguf_block block;
  const test::temporary_folder folder;
  gguf_writer file;
  block.add_keys(file);
  block.add_router(file);
  const std::vector<float> scale(2, 1);
  file.add("blk.0.ffn_up_exps.scale", {2}, ggml_type::f32, std::as_bytes(std::span(scale)));
  file.save(folder / "m.gguf");
  const std::string text = quantized_complaint(checkpoint_model(folder / "m.gguf"));
  CHECK_THAT(text, contains("missing \"blk.0.ffn_gate_exps.weight\": the layer needs shape [2, 16, 8]"));
  CHECK_THAT(text, contains("left over \"blk.0.ffn_up_exps.scale\": F32 [2]"));
}
