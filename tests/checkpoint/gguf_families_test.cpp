// Blocks of published models as GGUF files have them: names, keys and conventions of llama.cpp's converters are written
// out here, and what such a layer computes is compared bit by bit with the same numbers in the vendor's own layout.
#include <sluice/checkpoint/load_layer.hpp>
#include <sluice/io/gguf_writer.hpp>

#include "../io/messages.hpp"
#include "../io/temporary_folder.hpp"
#include "../support.hpp"
#include "published_files.hpp"
#include "published_layers.hpp"

#include <nlohmann/json.hpp>

#include <bit>
#include <cstring>
#include <deque>
#include <functional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

using namespace sluice;
using nlohmann::json;
using test::block_weights;
using test::contains;
using test::published_file;

namespace {

constexpr index_t road_D = 6, road_H = 5, road_E = 8, road_S = 7, road_vocabulary = 11;

/// Collects tensors of doubles as those of a GGUF file.
class road_file {
public:
  gguf_writer out;

  void add(const std::string& name, std::vector<std::int64_t> shape, const std::vector<double>& values,
           ggml_type type = ggml_type::f32) {
    std::vector<std::byte> bytes;
    for (const double v : values) {
      if (type == ggml_type::i32)
        append(bytes, static_cast<std::int32_t>(v));
      else
        append(bytes, static_cast<float>(v));
    }
    bytes_.push_back(std::move(bytes));
    out.add(name, shape, type, bytes_.back());
  }
  void add_bytes(const std::string& name, std::vector<std::int64_t> shape, ggml_type type,
                 std::vector<std::byte> bytes) {
    bytes_.push_back(std::move(bytes));
    out.add(name, shape, type, bytes_.back());
  }
  /// An array of F32.
  void floats(const std::string& name, const std::vector<float>& values) {
    std::vector<std::byte> bytes;
    append(bytes, static_cast<std::uint32_t>(gguf_type::f32));
    append(bytes, static_cast<std::uint64_t>(values.size()));
    for (const float v : values) append(bytes, v);
    out.key(name, gguf_value(gguf_type::array, bytes));
  }
  /// An array of U32.
  void numbers(const std::string& name, const std::vector<std::uint32_t>& values) {
    std::vector<std::byte> bytes;
    append(bytes, static_cast<std::uint32_t>(gguf_type::u32));
    append(bytes, static_cast<std::uint64_t>(values.size()));
    for (const std::uint32_t v : values) append(bytes, v);
    out.key(name, gguf_value(gguf_type::array, bytes));
  }

private:
  template <typename T>
  static void append(std::vector<std::byte>& to, T value) {
    const auto* const first = reinterpret_cast<const std::byte*>(&value);
    to.insert(to.end(), first, first + sizeof value);
  }
  std::deque<std::vector<std::byte>> bytes_;
};

/// One family in both forms: block 1 of two.
struct road_family {
  std::string architecture;
  json config;
  std::function<void(published_file&, const block_weights&)> write;
  std::function<void(road_file&, const block_weights&)> write_gguf;  // keys and tensors besides the usual
  index_t shared = 0;
  index_t experts_read = road_D;
};

void add_road_keys(road_file& file, const std::string& architecture) {
  file.out.key("general.architecture", architecture);
  file.out.key(architecture + ".embedding_length", static_cast<std::uint32_t>(road_D));
  file.out.key(architecture + ".block_count", std::uint32_t{2});
  file.out.key(architecture + ".expert_count", static_cast<std::uint32_t>(road_E));
  file.out.key(architecture + ".expert_used_count", std::uint32_t{2});
}

void add_road_experts(road_file& file, const block_weights& w, bool has_gate = true) {
  const std::string p = "blk.1.ffn_";
  const auto inputs = static_cast<index_t>(w.up.size()) / (w.E * w.H);
  file.add(p + "gate_inp.weight", {w.E, w.D}, w.router);
  if (has_gate) file.add(p + "gate_exps.weight", {w.E, w.H, inputs}, w.gate);
  file.add(p + "up_exps.weight", {w.E, w.H, inputs}, w.up);
  file.add(p + "down_exps.weight", {w.E, inputs, w.H}, w.down);
}

void add_road_shared(road_file& file, const block_weights& w, bool has_gate = true) {
  const std::string p = "blk.1.ffn_";
  if (has_gate) file.add(p + "gate_shexp.weight", {w.S, w.D}, w.shared_gate);
  file.add(p + "up_shexp.weight", {w.S, w.D}, w.shared_up);
  file.add(p + "down_shexp.weight", {w.D, w.S}, w.shared_down);
}

/// A tensor a matrix and expert.
void add_road_apart(published_file& file, const std::string& before, const block_weights& w, const char* gate,
                    const char* up, const char* down) {
  const auto inputs = static_cast<index_t>(w.up.size()) / (w.E * w.H);
  for (index_t e = 0; e < w.E; ++e) {
    const std::string name = before + std::to_string(e) + '.';
    if (gate != nullptr) file.add(name + gate, {w.H, inputs}, test::published::slice(w.gate, e, w.H * inputs));
    file.add(name + up, {w.H, inputs}, test::published::slice(w.up, e, w.H * inputs));
    file.add(name + down, {inputs, w.H}, test::published::slice(w.down, e, w.H * inputs));
  }
}

void add_road_shared(published_file& file, const std::string& before, const block_weights& w, const char* gate,
                     const char* up, const char* down) {
  if (gate != nullptr) file.add(before + gate, {w.S, w.D}, w.shared_gate);
  file.add(before + up, {w.S, w.D}, w.shared_up);
  file.add(before + down, {w.D, w.S}, w.shared_down);
}

std::vector<double> road_table() {
  std::vector<double> table;
  for (index_t id = 0; id < road_vocabulary; ++id)
    for (index_t j = 0; j < 2; ++j) table.push_back(static_cast<double>((3 * id + 5 * j + 1) % road_E));
  return table;
}

road_family nemotron_road(bool is_latent) {
  constexpr index_t latent = 4;
  const std::string p = "backbone.layers.1.mixer.";
  road_family f{
      "nemotron_h_moe",
      {{"model_type", "nemotron_h"},
       {"hidden_size", road_D},
       {"moe_intermediate_size", road_H},
       {"num_hidden_layers", 2},
       {"hybrid_override_pattern", "ME"},
       {"n_routed_experts", road_E},
       {"num_experts_per_tok", 2},
       {"norm_topk_prob", true},
       {"routed_scaling_factor", 2.5},
       {"n_group", 2},
       {"topk_group", 1},
       {"moe_shared_expert_intermediate_size", road_S},
       {"mlp_hidden_act", "relu2"}},
      [p, is_latent](published_file& file, const block_weights& w) {
        file.add(p + "gate.weight", {road_E, road_D}, w.router);
        file.add(p + "gate.e_score_correction_bias", {road_E}, w.selection_bias);
        add_road_apart(file, p + "experts.", w, nullptr, "up_proj.weight", "down_proj.weight");
        add_road_shared(file, p + "shared_experts.", w, nullptr, "up_proj.weight", "down_proj.weight");
        if (!is_latent) return;
        file.add(p + "fc1_latent_proj.weight", {latent, road_D}, test::published::slice(w.gate, 0, latent * road_D));
        file.add(p + "fc2_latent_proj.weight", {road_D, latent}, test::published::slice(w.gate, 1, latent * road_D));
      },
      [is_latent](road_file& file, const block_weights& w) {
        const std::string a = "nemotron_h_moe.";
        file.numbers(a + "feed_forward_length", {0, static_cast<std::uint32_t>(road_H)});
        file.numbers(a + "expert_feed_forward_length", {0, static_cast<std::uint32_t>(road_H)});
        file.out.key(a + "expert_weights_norm", true);
        file.out.key(a + "expert_weights_scale", 2.5F);
        file.out.key(a + "expert_group_count", std::uint32_t{2});
        file.out.key(a + "expert_group_used_count", std::uint32_t{1});
        file.add("blk.0.ssm_d", {1, 1}, {1});
        add_road_experts(file, w, false);
        add_road_shared(file, w, false);
        file.add("blk.1.exp_probs_b.bias", {road_E}, w.selection_bias);
        if (!is_latent) return;
        file.out.key(a + "moe_latent_size", static_cast<std::uint32_t>(latent));
        file.add("blk.1.ffn_latent_down.weight", {latent, road_D}, test::published::slice(w.gate, 0, latent * road_D));
        file.add("blk.1.ffn_latent_up.weight", {road_D, latent}, test::published::slice(w.gate, 1, latent * road_D));
      },
      road_S};
  if (is_latent) f.config["moe_latent_size"] = latent, f.experts_read = latent;
  return f;
}

road_family deepseek_v4_road(bool is_hashed) {
  return {"deepseek4",
          {{"model_type", "deepseek_v4"},
           {"hidden_size", road_D},
           {"moe_intermediate_size", road_H},
           {"num_hidden_layers", 2},
           {"n_routed_experts", road_E},
           {"num_experts_per_tok", 2},
           {"n_shared_experts", 1},
           {"norm_topk_prob", true},
           {"routed_scaling_factor", 1.5},
           {"scoring_func", "sqrtsoftplus"},
           {"swiglu_limit", 0.75},
           {"vocab_size", road_vocabulary},
           {"mlp_layer_types", {"dense", is_hashed ? "hash_moe" : "moe"}}},
          [is_hashed](published_file& file, const block_weights& w) {
            const std::string p = "layers.1.ffn.";
            file.add(p + "gate.weight", {road_E, road_D}, w.router);
            if (is_hashed)
              file.add(p + "gate.tid2eid", {road_vocabulary, 2}, road_table(), data_type::i64);
            else
              file.add(p + "gate.bias", {road_E}, w.selection_bias);
            add_road_apart(file, p + "experts.", w, "w1.weight", "w3.weight", "w2.weight");
            add_road_shared(file, p + "shared_experts.", w, "w1.weight", "w3.weight", "w2.weight");
          },
          [is_hashed](road_file& file, const block_weights& w) {
            const std::string a = "deepseek4.";
            file.out.key(a + "expert_feed_forward_length", static_cast<std::uint32_t>(road_H));
            file.out.key(a + "expert_gating_func", std::uint32_t{4});
            file.out.key(a + "expert_weights_norm", true);
            file.out.key(a + "expert_weights_scale", 1.5F);
            file.out.key(a + "hash_layer_count", std::uint32_t{is_hashed ? 2U : 0U});
            file.out.key(a + "vocab_size", static_cast<std::uint32_t>(road_vocabulary));
            file.floats(a + "swiglu_clamp_exp", {0.75F, 0.75F});
            file.floats(a + "swiglu_clamp_shexp", {0.75F, 0.75F});
            add_road_experts(file, w);
            add_road_shared(file, w);
            if (is_hashed)
              file.add("blk.1.ffn_gate_tid2eid.weight", {road_vocabulary, 2}, road_table(), ggml_type::i32);
            else
              file.add("blk.1.exp_probs_b.bias", {road_E}, w.selection_bias);
          },
          road_H};
}

road_family gemma_road() {
  return {"gemma4",
          {{"model_type", "gemma4_text"},
           {"hidden_size", road_D},
           {"intermediate_size", road_S},
           {"moe_intermediate_size", road_H},
           {"num_experts", road_E},
           {"top_k_experts", 2},
           {"num_hidden_layers", 2},
           {"rms_norm_eps", 0.0009765625},
           {"enable_moe_block", true},
           {"hidden_activation", "gelu_pytorch_tanh"}},
          [](published_file& file, const block_weights& w) {
            const std::string p = "model.layers.1.";
            const auto gains = [&](const char* name, index_t which) {
              file.add(p + name, {road_D}, test::published::slice(w.down_bias, which, road_D));
            };
            gains("router.scale", 0);
            gains("pre_feedforward_layernorm_2.weight", 1);
            gains("post_feedforward_layernorm_2.weight", 2);
            gains("pre_feedforward_layernorm.weight", 3);
            gains("post_feedforward_layernorm_1.weight", 4);
            file.add(p + "router.proj.weight", {road_E, road_D}, w.router);
            file.add(p + "router.per_expert_scale", {road_E}, w.router_bias);
            file.add(p + "experts.gate_up_proj", {road_E, 2 * road_H, road_D},
                     test::published::concatenated(w, w.gate, w.up));
            file.add(p + "experts.down_proj", {road_E, road_D, road_H}, w.down);
            add_road_shared(file, p + "mlp.", w, "gate_proj.weight", "up_proj.weight", "down_proj.weight");
          },
          [](road_file& file, const block_weights& w) {
            const std::string a = "gemma4.", p = "blk.1.";
            const auto gains = [&](const char* name, index_t which) {
              file.add(p + name, {road_D}, test::published::slice(w.down_bias, which, road_D));
            };
            file.out.key(a + "feed_forward_length", static_cast<std::uint32_t>(road_S));
            file.out.key(a + "expert_feed_forward_length", static_cast<std::uint32_t>(road_H));
            file.out.key(a + "attention.layer_norm_rms_epsilon", 0.0009765625F);
            file.add("blk.0.ffn_gate_inp.weight", {road_E, road_D}, w.router);
            gains("ffn_gate_inp.scale", 0);
            gains("pre_ffw_norm_2.weight", 1);
            gains("post_ffw_norm_2.weight", 2);
            gains("ffn_norm.weight", 3);
            gains("post_ffw_norm_1.weight", 4);
            gains("post_ffw_norm.weight", 5);  // of the residual stream, not of the mixture
            file.add(p + "ffn_down_exps.scale", {road_E}, w.router_bias);
            file.add(p + "ffn_gate_inp.weight", {road_E, road_D}, w.router);
            file.add(p + "ffn_gate_up_exps.weight", {road_E, 2 * road_H, road_D},
                     test::published::concatenated(w, w.gate, w.up));
            file.add(p + "ffn_down_exps.weight", {road_E, road_D, road_H}, w.down);
            file.add(p + "ffn_gate.weight", {road_S, road_D}, w.shared_gate);
            file.add(p + "ffn_up.weight", {road_S, road_D}, w.shared_up);
            file.add(p + "ffn_down.weight", {road_D, road_S}, w.shared_down);
          },
          road_S};
}

/// As Mixtral's releases name a mixture, and Arctic's.
void write_block_sparse(published_file& file, const block_weights& w) {
  const std::string p = "model.layers.1.block_sparse_moe.";
  file.add(p + "gate.weight", {road_E, road_D}, w.router);
  add_road_apart(file, p + "experts.", w, "w1.weight", "w3.weight", "w2.weight");
}

std::vector<road_family> road_families() {
  std::vector<road_family> all;
  all.push_back(
      {"llama4",
       {{"model_type", "llama4_text"},
        {"hidden_size", road_D},
        {"intermediate_size", road_H},
        {"intermediate_size_mlp", 9},
        {"num_hidden_layers", 2},
        {"num_local_experts", road_E},
        {"num_experts_per_tok", 2},
        {"interleave_moe_layer_step", 2}},
       [](published_file& file, const block_weights& w) {
         const std::string p = "model.layers.1.feed_forward.";
         using namespace test::published;
         file.add(p + "router.weight", {road_E, road_D}, w.router);
         file.add(p + "experts.gate_up_proj", {road_E, road_D, 2 * road_H},
                  transposed(concatenated(w, w.gate, w.up), road_E, 2 * road_H, road_D));
         file.add(p + "experts.down_proj", {road_E, road_H, road_D}, transposed(w.down, road_E, road_D, road_H));
         add_road_shared(file, p + "shared_expert.", w, "gate_proj.weight", "up_proj.weight", "down_proj.weight");
       },
       [](road_file& file, const block_weights& w) {
         file.out.key("llama4.feed_forward_length", std::uint32_t{9});
         file.out.key("llama4.expert_feed_forward_length", static_cast<std::uint32_t>(road_H));
         file.out.key("llama4.interleave_moe_layer_step", std::uint32_t{2});
         file.add("blk.0.ffn_gate.weight", {1, 1}, {1});
         add_road_experts(file, w);
         add_road_shared(file, w);
       },
       road_H});
  all.push_back({"dbrx",
                 {{"model_type", "dbrx"},
                  {"d_model", road_D},
                  {"n_layers", 2},
                  {"ffn_config",
                   {{"ffn_hidden_size", road_H},
                    {"moe_num_experts", road_E},
                    {"moe_top_k", 2},
                    {"moe_normalize_expert_weights", 1}}}},
                 [](published_file& file, const block_weights& w) {
                   const std::string p = "transformer.blocks.1.ffn.";
                   file.add(p + "router.layer.weight", {road_E, road_D}, w.router);
                   file.add(p + "experts.mlp.w1", {road_E * road_H, road_D}, w.gate);
                   file.add(p + "experts.mlp.v1", {road_E * road_H, road_D}, w.up);
                   file.add(p + "experts.mlp.w2", {road_E * road_H, road_D},
                            test::published::transposed(w.down, road_E, road_D, road_H));
                 },
                 [](road_file& file, const block_weights& w) {
                   file.out.key("dbrx.feed_forward_length", static_cast<std::uint32_t>(road_H));
                   file.add("blk.0.ffn_gate_inp.weight", {road_E, road_D}, w.router);
                   file.add("blk.1.attn_output_norm.weight", {road_D}, test::published::slice(w.down_bias, 0, road_D));
                   add_road_experts(file, w);
                 }});
  all.push_back({"arctic",
                 {{"model_type", "arctic"},
                  {"hidden_size", road_D},
                  {"intermediate_size", road_H},
                  {"num_hidden_layers", 2},
                  {"num_local_experts", road_E},
                  {"num_experts_per_tok", 2},
                  {"moe_layer_frequency", 2}},
                 write_block_sparse,
                 [](road_file& file, const block_weights& w) {
                   file.out.key("arctic.feed_forward_length", static_cast<std::uint32_t>(road_H));
                   file.add("blk.1.ffn_norm_exps.weight", {road_D}, test::published::slice(w.down_bias, 0, road_D));
                   file.add("blk.1.ffn_up.weight", {1, 1}, {1});  // the residual branch beside the mixture
                   add_road_experts(file, w);
                 }});
  all.push_back({"granitehybrid",
                 {{"model_type", "granitemoehybrid"},
                  {"hidden_size", road_D},
                  {"intermediate_size", road_H},
                  {"shared_intermediate_size", road_S},
                  {"num_hidden_layers", 2},
                  {"num_local_experts", road_E},
                  {"num_experts_per_tok", 2}},
                 [](published_file& file, const block_weights& w) {
                   const std::string p = "model.layers.1.";
                   std::vector<double> both = w.shared_gate;
                   both.insert(both.end(), w.shared_up.begin(), w.shared_up.end());
                   file.add(p + "block_sparse_moe.router.layer.weight", {road_E, road_D}, w.router);
                   file.add(p + "block_sparse_moe.input_linear.weight", {road_E, 2 * road_H, road_D},
                            test::published::concatenated(w, w.gate, w.up));
                   file.add(p + "block_sparse_moe.output_linear.weight", {road_E, road_D, road_H}, w.down);
                   file.add(p + "shared_mlp.input_linear.weight", {2 * road_S, road_D}, both);
                   file.add(p + "shared_mlp.output_linear.weight", {road_D, road_S}, w.shared_down);
                 },
                 [](road_file& file, const block_weights& w) {
                   file.out.key("granitehybrid.feed_forward_length", static_cast<std::uint32_t>(road_H));
                   file.add("blk.0.ffn_gate_inp.weight", {road_E, road_D}, w.router);
                   add_road_experts(file, w);
                   add_road_shared(file, w);
                 },
                 road_S});
  all.push_back({"qwen2moe",  // the gate of the shared expert as a matrix of one row, which is how converters leave it
                 {{"model_type", "qwen2_moe"},
                  {"hidden_size", road_D},
                  {"moe_intermediate_size", road_H},
                  {"shared_expert_intermediate_size", road_S},
                  {"num_hidden_layers", 2},
                  {"mlp_only_layers", {0}},
                  {"num_experts", road_E},
                  {"num_experts_per_tok", 2}},
                 [](published_file& file, const block_weights& w) {
                   const std::string p = "model.layers.1.mlp.";
                   file.add(p + "gate.weight", {road_E, road_D}, w.router);
                   add_road_apart(file, p + "experts.", w, "gate_proj.weight", "up_proj.weight", "down_proj.weight");
                   add_road_shared(file, p + "shared_expert.", w, "gate_proj.weight", "up_proj.weight",
                                   "down_proj.weight");
                   file.add(p + "shared_expert_gate.weight", {1, road_D}, w.shared_router);
                 },
                 [](road_file& file, const block_weights& w) {
                   file.out.key("qwen2moe.expert_feed_forward_length", static_cast<std::uint32_t>(road_H));
                   add_road_experts(file, w);
                   add_road_shared(file, w);
                   file.add("blk.1.ffn_gate_inp_shexp.weight", {1, road_D}, w.shared_router);
                 },
                 road_S});
  all.push_back({"llama",  // Mixtral's oldest files
                 {{"model_type", "mixtral"},
                  {"hidden_size", road_D},
                  {"intermediate_size", road_H},
                  {"num_hidden_layers", 2},
                  {"num_local_experts", road_E},
                  {"num_experts_per_tok", 2}},
                 write_block_sparse,
                 [](road_file& file, const block_weights& w) {
                   file.out.key("llama.feed_forward_length", static_cast<std::uint32_t>(road_H));
                   file.add("blk.0.ffn_gate_inp.weight", {road_E, road_D}, w.router);
                   file.add("blk.1.ffn_gate_inp.weight", {road_E, road_D}, w.router);
                   for (index_t e = 0; e < road_E; ++e) {
                     const std::string end = '.' + std::to_string(e) + ".weight";
                     using test::published::slice;
                     file.add("blk.1.ffn_gate" + end, {road_H, road_D}, slice(w.gate, e, road_H * road_D));
                     file.add("blk.1.ffn_up" + end, {road_H, road_D}, slice(w.up, e, road_H * road_D));
                     file.add("blk.1.ffn_down" + end, {road_D, road_H}, slice(w.down, e, road_H * road_D));
                   }
                 }});
  all.push_back({"gpt-oss",  // gate and up in one tensor, and their biases
                 {{"model_type", "gpt_oss"},
                  {"hidden_size", road_D},
                  {"intermediate_size", road_H},
                  {"num_hidden_layers", 2},
                  {"num_local_experts", road_E},
                  {"num_experts_per_tok", 2}},
                 [](published_file& file, const block_weights& w) {
                   test::add_block(file, model_family::gpt_oss, "stacked", w, 1, data_type::f32);
                 },
                 [](road_file& file, const block_weights& w) {
                   using test::published::concatenated;
                   const std::string p = "blk.1.ffn_";
                   file.out.key("gpt-oss.expert_feed_forward_length", static_cast<std::uint32_t>(road_H));
                   file.add("blk.0.ffn_gate_inp.weight", {road_E, road_D}, w.router);
                   file.add(p + "gate_inp.weight", {road_E, road_D}, w.router);
                   file.add(p + "gate_inp.bias", {road_E}, w.router_bias);
                   file.add(p + "gate_up_exps.weight", {road_E, 2 * road_H, road_D}, concatenated(w, w.gate, w.up));
                   file.add(p + "gate_up_exps.bias", {road_E, 2 * road_H}, concatenated(w, w.gate_bias, w.up_bias));
                   file.add(p + "down_exps.weight", {road_E, road_D, road_H}, w.down);
                   file.add(p + "down_exps.bias", {road_E, road_D}, w.down_bias);
                 }});
  for (const bool is_latent : {false, true}) all.push_back(nemotron_road(is_latent));
  for (const bool is_hashed : {false, true}) all.push_back(deepseek_v4_road(is_hashed));
  all.push_back(gemma_road());
  return all;
}

block_weights road_weights(const road_family& f) {
  block_weights w = block_weights::random(road_E, road_D, road_H, f.shared, 61);
  for (double& b : w.selection_bias) b *= 0.25;
  for (auto* v : {&w.up, &w.down}) v->resize(static_cast<std::size_t>(road_E * road_H * f.experts_read));
  return w;
}

}  // namespace

TEST_CASE("GGUF families: a block is the same layer as in the vendor's files, bit for bit", "[checkpoint][gguf]") {
  const matrix<float> x = test::random_matrix<float>(9, road_D, 62);
  std::vector<index_t> ids;
  for (index_t t = 0; t < x.rows(); ++t) ids.push_back(7 * t % road_vocabulary);
  routing_context<float> context;
  context.token_ids = ids;
  for (const road_family& f : road_families()) {
    CAPTURE(f.architecture, f.config.dump());
    const test::temporary_folder folder(test::memory_folder());
    const block_weights w = road_weights(f);
    published_file vendor;
    f.write(vendor, w);
    vendor.save(folder / "model.safetensors");
    test::write_bytes(folder / "config.json", f.config.dump());
    road_file file;
    add_road_keys(file, f.architecture);
    f.write_gguf(file, w);
    file.out.save(folder / "m.gguf");

    const checkpoint_model published(folder / "model.safetensors"), converted(folder / "m.gguf");
    model_config expected = published.config();
    expected.quantization = "gguf";
    CHECK(converted.config() == expected);
    const auto run = [&](const checkpoint_model& model) {
      layer_load_report report;
      const auto layer = load_published_layer<float>(model, {.layer = 1}, weight_type::as_scalar, {.report = &report});
      CHECK(report.ignored.empty());
      matrix<float> y(x.rows(), road_D);
      layer->forward(x, y, context);
      return y;
    };
    const matrix<float> from_vendor = run(published), from_gguf = run(converted);
    CHECK(from_vendor.cwiseAbs().maxCoeff() > 0.01F);
    CHECK(std::memcmp(from_vendor.data(), from_gguf.data(), sizeof(float) * as_size(from_gguf.size())) == 0);
  }
}

namespace {

/// A Qwen3 block whose up matrices are NVFP4 and whose scales stand beside them.
class road_nvfp4 {
public:
  static constexpr index_t inputs = 64, hidden = 1;
  road_file file;

  explicit road_nvfp4(bool is_fused = false) {
    file.out.key("general.architecture", "qwen3moe");
    file.out.key("qwen3moe.embedding_length", static_cast<std::uint32_t>(inputs));
    file.out.key("qwen3moe.block_count", std::uint32_t{1});
    file.out.key("qwen3moe.expert_count", std::uint32_t{2});
    file.out.key("qwen3moe.expert_used_count", std::uint32_t{1});
    file.out.key("qwen3moe.expert_feed_forward_length", static_cast<std::uint32_t>(hidden));
    file.add("blk.0.ffn_gate_inp.weight", {2, inputs}, std::vector<double>(2 * inputs, 1));
    file.add("blk.0.ffn_down_exps.weight", {2, inputs, hidden}, std::vector<double>(2 * inputs, 1));
    if (is_fused) {
      file.add_bytes("blk.0.ffn_gate_up_exps.weight", {2, 2 * hidden, inputs}, ggml_type::nvfp4, rows(4));
      return;
    }
    file.add("blk.0.ffn_gate_exps.weight", {2, hidden, inputs}, std::vector<double>(2 * inputs, 1));
    file.add_bytes("blk.0.ffn_up_exps.weight", {2, hidden, inputs}, ggml_type::nvfp4, rows(2));
  }

  checkpoint_model open(const test::temporary_folder& folder) const {
    file.out.save(folder / "m.gguf");
    return checkpoint_model(folder / "m.gguf");
  }
  std::string complaint(const test::temporary_folder& folder) const {
    try {
      load_layer<qwen3_moe_layer<float>>(open(folder), {.layer = 0});
    } catch (const file_error& error) {
      return error.what();
    }
    return {};
  }

private:
  /// Every code is 2, which is 1, and every group's scale 0x38, which is 0.5 in ggml's halved e4m3.
  static std::vector<std::byte> rows(std::size_t count) {
    std::vector<std::byte> bytes;
    for (std::size_t i = 0; i < count; ++i) {
      bytes.insert(bytes.end(), 4, std::byte{0x38});
      bytes.insert(bytes.end(), 32, std::byte{0x22});
    }
    return bytes;
  }
};

}  // namespace

TEST_CASE("GGUF families: scales beside weights multiply them, those of activations are passed over",
          "[checkpoint][gguf]") {
  const test::temporary_folder folder;
  const auto up_of = [](const checkpoint_model& model, index_t expert, layer_load_report& report) {
    auto layer = load_layer<qwen3_moe_layer<float>>(model, {.layer = 0}, {.report = &report});
    return layer.bank().expert(expert).up().to_matrix()(0, 5);
  };
  layer_load_report report;
  const float plain = up_of(road_nvfp4().open(folder), 1, report);
  CHECK((plain > 0 && report.ignored.empty()));
  for (const bool is_fused : {false, true}) {
    road_nvfp4 model(is_fused);
    model.file.add("blk.0.ffn_up_exps.scale", {2}, {3, 0.625});
    model.file.add("blk.0.ffn_up_exps.input_scale", {2}, {7, 7});
    const checkpoint_model opened = model.open(folder);
    CHECK(up_of(opened, 0, report) == 3 * plain);
    CHECK(up_of(opened, 1, report) == 0.625F * plain);
    CHECK(report.ignored == std::vector<std::string>{"blk.0.ffn_up_exps.input_scale"});
  }
  road_nvfp4 one;
  one.file.add("blk.0.ffn_up_exps.scale", {1}, {4});
  one.file.add("blk.0.ffn_down_exps.scale", {1}, {4});  // of a tensor of plain numbers
  CHECK(up_of(one.open(folder), 1, report) == 4 * plain);
  CHECK(one.open(folder).tensors().find("blk.0.ffn_up_exps.weight")->info.type_name() == "nvfp4, scaled");

  road_nvfp4 many;
  many.file.add("blk.0.ffn_up_exps.scale", {3}, {1, 1, 1});
  CHECK_THAT(many.complaint(folder), contains("ffn_up_exps.scale\" is F32 [3], must be F32 [2]"));
  road_nvfp4 of_router;
  of_router.file.add("blk.0.ffn_gate_inp.scale", {1}, {2});
  CHECK_THAT(of_router.complaint(folder), contains("what chooses experts must not be"));
}

TEST_CASE("GGUF families: an expert too few or too many in Mixtral's oldest files is refused", "[checkpoint][gguf]") {
  const test::temporary_folder folder;
  for (const index_t count : {1, 3}) {
    road_file file;
    file.out.key("general.architecture", "llama");
    file.out.key("llama.embedding_length", std::uint32_t{1});
    file.out.key("llama.block_count", std::uint32_t{1});
    file.out.key("llama.expert_count", std::uint32_t{2});
    file.out.key("llama.expert_used_count", std::uint32_t{1});
    file.out.key("llama.feed_forward_length", std::uint32_t{1});
    file.add("blk.0.ffn_gate_inp.weight", {2, 1}, {1, 1});
    for (index_t e = 0; e < count; ++e)
      for (const char* const part : {"gate", "up", "down"})
        file.add("blk.0.ffn_" + std::string(part) + '.' + std::to_string(e) + ".weight", {1, 1}, {1});
    file.out.save(folder / "m.gguf");
    CHECK_THROWS_WITH(
        load_layer<mixtral_layer<float>>(checkpoint_model(folder / "m.gguf"), {.layer = 0}),
        contains(count == 1 ? "missing \"blk.0.ffn_up.1.weight\"" : "left over \"blk.0.ffn_up.2.weight\""));
  }
}
