#include <sluice/checkpoint/gguf_config.hpp>
#include <sluice/io/gguf_writer.hpp>

#include "../io/messages.hpp"
#include "support.hpp"

#include <cstdint>
#include <string>
#include <vector>

using namespace sluice;
using test::contains;

namespace {

const std::vector<float> gguf_zeros(256);

/// A model of four blocks, the first dense, of an architecture; more keys and tensors may follow.
gguf_writer gguf_model(const std::string& architecture) {
  gguf_writer file;
  file.key("general.architecture", architecture);
  file.key(architecture + ".embedding_length", std::uint32_t{8});
  file.key(architecture + ".block_count", std::uint32_t{4});
  file.key(architecture + ".expert_count", std::uint32_t{4});
  file.key(architecture + ".expert_used_count", std::uint32_t{2});
  file.key(architecture + ".feed_forward_length", std::uint32_t{24});
  file.key(architecture + ".attention.layer_norm_rms_epsilon", 1e-6F);
  file.key(architecture + ".swiglu_clamp_exp", 10.0F);
  return file;
}

void add_gguf_tensor(gguf_writer& file, const std::string& name, std::vector<std::int64_t> shape) {
  std::size_t size = 1;
  for (const std::int64_t extent : shape) size *= as_size(extent);
  file.add(name, shape, ggml_type::f32, std::as_bytes(std::span(gguf_zeros).first(size)));
}

void add_gguf_routers(gguf_writer& file) {
  for (const char* const block : {"blk.1", "blk.2", "blk.3"}) {
    add_gguf_tensor(file, std::string(block) + ".ffn_gate_inp.weight", {4, 8});
    add_gguf_tensor(file, std::string(block) + ".exp_probs_b.bias", {4});
    add_gguf_tensor(file, std::string(block) + ".ffn_up_shexp.weight", {5, 8});
  }
}

model_config gguf_config_of(const gguf_writer& file) {
  const std::vector<std::byte> bytes = file.to_bytes();
  std::vector<gguf_reader> readers;
  readers.push_back(gguf_reader::from_bytes(bytes, "m.gguf"));
  return read_gguf_config(readers);
}

}  // namespace

TEST_CASE("read_gguf_config: every architecture is a family with its rules", "[checkpoint][gguf]") {
  for (const detail::gguf_architecture& row : detail::gguf_architectures) {
    CAPTURE(row.name);
    gguf_writer file = gguf_model(std::string(row.name));
    add_gguf_routers(file);
    const model_config config = gguf_config_of(file);
    CHECK(config.quantization == "gguf");
    CHECK(config.family == row.family);
    CHECK(detail::spelling_of(config.family, config.model_type).family == config.family);
    CHECK(config.inputs == 8);
    CHECK(config.hidden == 24);
    CHECK(config.experts == 4);
    CHECK(config.top_k == 2);
    CHECK(config.shared_hidden == (config.family == model_family::gemma4 ? 24 : 5));
    CHECK(config.layers == 4);
    CHECK(config.moe_layers == std::vector<index_t>{1, 2, 3});
    CHECK(config.renormalize == (row.weights == detail::weights_rule::divided));
    CHECK(config.router_bias == (config.family == model_family::gpt_oss));
    CHECK(config.clamp == (config.family == model_family::gpt_oss       ? 7
                           : config.family == model_family::deepseek_v4 ? 10
                                                                        : 0));
  }
}

TEST_CASE("read_gguf_config: DeepSeek's files that are older than the key of scores are known by a bias",
          "[checkpoint][gguf]") {
  for (const bool has_bias : {false, true}) {
    gguf_writer file = gguf_model("deepseek2");
    add_gguf_tensor(file, "blk.3.ffn_gate_inp.weight", {4, 8});
    if (has_bias) add_gguf_tensor(file, "blk.3.exp_probs_b.bias", {4});
    CHECK(gguf_config_of(file).family == (has_bias ? model_family::deepseek_v3 : model_family::deepseek_v2));
  }
}

TEST_CASE("read_gguf_config: where no key says how wide experts are, they do", "[checkpoint][gguf]") {
  gguf_writer file = gguf_model("qwen2moe");
  add_gguf_tensor(file, "blk.3.ffn_gate_inp.weight", {4, 8});
  add_gguf_tensor(file, "blk.3.ffn_down_exps.weight", {4, 8, 6});
  CHECK(gguf_config_of(file).hidden == 6);  // not 24, which is that of the chosen ones together
}

TEST_CASE("read_gguf_config: a file of nothing but the block that predicts further tokens", "[checkpoint][gguf]") {
  gguf_writer file = gguf_model("qwen35moe");
  file.key("qwen35moe.nextn_predict_layers", std::uint32_t{1});
  add_gguf_tensor(file, "blk.3.nextn.eh_proj.weight", {8, 16});
  add_gguf_tensor(file, "blk.3.ffn_gate_inp.weight", {4, 8});
  const model_config config = gguf_config_of(file);
  CHECK((config.layers == 3 && config.next_token_layers == 1 && config.moe_layers.empty()));
}

TEST_CASE("read_gguf_config: blocks that are counted and left out, or not counted, predict further tokens or do not",
          "[checkpoint][gguf]") {
  const auto layers_with = [](const char* last) {
    gguf_writer file = gguf_model("deepseek4");
    file.key("deepseek4.nextn_predict_layers", std::uint32_t{1});
    add_gguf_tensor(file, "blk.0.ffn_gate_inp.weight", {4, 8});
    if (last != nullptr) add_gguf_tensor(file, std::string("blk.3.") + last, {8});
    return gguf_config_of(file).layers;
  };
  CHECK(layers_with(nullptr) == 3);
  CHECK(layers_with("nextn.enorm.weight") == 3);
  CHECK(layers_with("ffn_norm.weight") == 4);
}

TEST_CASE("read_gguf_config: DeepSeek-V3 by its keys", "[checkpoint][gguf]") {
  gguf_writer file = gguf_model("deepseek2");
  file.key("deepseek2.expert_feed_forward_length", std::uint32_t{6});
  file.key("deepseek2.expert_gating_func", std::uint32_t{2});
  file.key("deepseek2.expert_weights_norm", true);
  file.key("deepseek2.expert_weights_scale", 2.5F);
  file.key("deepseek2.expert_group_count", std::uint32_t{2});
  file.key("deepseek2.expert_group_used_count", std::uint32_t{1});
  file.key("deepseek2.nextn_predict_layers", std::uint32_t{1});
  add_gguf_routers(file);
  add_gguf_tensor(file, "blk.3.nextn.eh_proj.weight", {8, 16});
  const model_config config = gguf_config_of(file);
  CHECK(config.family == model_family::deepseek_v3);
  CHECK(config.model_type == "deepseek_v3");
  CHECK(config.hidden == 6);
  CHECK(config.scaling == 2.5);
  CHECK(config.renormalize);
  CHECK(config.selection_bias);
  CHECK(config.groups == group_limit{2, 1, group_limit::group_score::sum_of_two});
  CHECK(config.layers == 3);
  CHECK(config.next_token_layers == 1);
  CHECK(config.moe_layers == std::vector<index_t>{1, 2});
}

TEST_CASE("read_gguf_config: what makes no sense is refused by key and number", "[checkpoint][gguf]") {
  const auto complaint = [](auto&& change, const char* architecture = "qwen3moe") {
    gguf_writer file = gguf_model(architecture);
    change(file);
    add_gguf_routers(file);
    try {
      gguf_config_of(file);
    } catch (const file_error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  const auto with = [&](const char* key, auto value, const char* architecture = "qwen3moe") {
    return complaint([&](gguf_writer& f) { f.key(std::string(architecture) + '.' + key, value); }, architecture);
  };
  CHECK(with("expert_feed_forward_length", std::uint64_t{6}).empty());
  CHECK_THAT(with("expert_feed_forward_length", 6.0F),
             contains("key \"qwen3moe.expert_feed_forward_length\": must be an integer from 0 to 16777216, is a F32"));
  CHECK_THAT(with("expert_weights_norm", false), contains("differs from what models of this family do"));
  CHECK_THAT(with("expert_weights_scale", -1.0F), contains("must be a number from 0 to 1e+06, is -1"));
  CHECK_THAT(with("expert_gating_func", std::uint32_t{2}),
             contains("only 1 is supported for this architecture, not 2"));
  CHECK_THAT(with("expert_gating_func", std::uint32_t{3}, "deepseek2"), contains("not 3"));
  CHECK_THAT(with("expert_group_count", std::uint32_t{3}), contains("E divisible by the groups"));
  CHECK_THAT(with("nextn_predict_layers", std::uint32_t{4}), contains("from 0 to 3, is 4"));
  CHECK_THAT(with("swiglu_clamp_shexp", 0.0F, "deepseek4"),
             contains("\"deepseek4.swiglu_clamp_shexp\": is 0 beside a swiglu_clamp_exp of 10"));
  CHECK_THAT(with("hash_layer_count", std::uint32_t{2}, "deepseek4"), contains("\"deepseek4.vocab_size\": is missing"));
  CHECK_THAT(with("expert_gating_func", std::uint32_t{2}, "deepseek4"), contains("only 4 is supported"));
  CHECK_THAT(complaint([](gguf_writer&) {}, "grok"),
             contains("architecture \"grok\" is of no known family; known are llama"));

  gguf_writer bare;
  CHECK_THROWS_WITH(gguf_config_of(bare), contains("\"general.architecture\": must be a string"));
  bare.key("general.architecture", "olmoe");
  CHECK_THROWS_WITH(gguf_config_of(bare), contains("\"olmoe.embedding_length\": is missing"));
  CHECK_THROWS_WITH(gguf_config_of(gguf_model("olmoe")), contains("none of its 4 blocks is a mixture of experts"));
}
