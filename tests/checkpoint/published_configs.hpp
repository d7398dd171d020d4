/// What tests/data/malformed/config/valid_*.json, the configs of real releases cut to what matters and a little more,
/// must be read as.
#pragma once

#include <sluice/checkpoint/model_config.hpp>

#include <string>
#include <vector>

namespace sluice::test {

struct published_config {
  std::string name;
  model_config expected;
};

/// first, first + step, ... below layers
inline std::vector<index_t> every(index_t layers, index_t first = 0, index_t step = 1) {
  std::vector<index_t> out;
  for (index_t i = first; i < layers; i += step) out.push_back(i);
  return out;
}

inline model_config base_config(model_family family, const char* type, index_t d, index_t h, index_t e, index_t k,
                                index_t layers) {
  model_config c;
  c.family = family;
  c.model_type = type;
  c.inputs = d;
  c.hidden = h;
  c.experts = e;
  c.top_k = k;
  c.layers = layers;
  c.moe_layers = every(layers);
  return c;
}

inline std::vector<published_config> published_configs() {
  std::vector<published_config> out;
  const auto add = [&](const char* name, model_family family, const char* type, index_t d, index_t h, index_t e,
                       index_t k, index_t layers) -> model_config& {
    out.push_back({name, base_config(family, type, d, h, e, k, layers)});
    return out.back().expected;
  };

  add("mixtral_8x7b", model_family::mixtral, "mixtral", 4096, 14336, 8, 2, 32).renormalize = true;

  add("olmoe_1b_7b", model_family::olmoe, "olmoe", 2048, 1024, 64, 8, 16);

  add("qwen1.5_moe_a2.7b", model_family::qwen2_moe, "qwen2_moe", 2048, 1408, 60, 4, 24).shared_hidden = 5632;

  add("qwen3_30b_a3b", model_family::qwen3_moe, "qwen3_moe", 2048, 768, 128, 8, 48).renormalize = true;

  auto& moe_16b = add("deepseek_moe_16b", model_family::deepseek_v2, "deepseek", 2048, 1408, 64, 6, 28);
  moe_16b.shared_hidden = 2816;
  moe_16b.moe_layers = every(28, 1);

  auto& lite = add("deepseek_v2_lite", model_family::deepseek_v2, "deepseek_v2", 2048, 1408, 64, 6, 27);
  lite.shared_hidden = 2816;
  lite.moe_layers = every(27, 1);

  auto& v2 = add("deepseek_v2", model_family::deepseek_v2, "deepseek_v2", 5120, 1536, 160, 6, 60);
  v2.shared_hidden = 3072;
  v2.scaling = 16;
  v2.groups = {8, 3, group_limit::group_score::best};
  v2.moe_layers = every(60, 1);

  auto& v3 = add("deepseek_v3", model_family::deepseek_v3, "deepseek_v3", 7168, 2048, 256, 8, 61);
  v3.quantization = "fp8";
  v3.encoding = {.tile_rows = 128, .tile_inputs = 128};
  v3.shared_hidden = 2048;
  v3.renormalize = true;
  v3.scaling = 2.5;
  v3.groups = {8, 4, group_limit::group_score::sum_of_two};
  v3.moe_layers = every(61, 3);
  v3.next_token_layers = 1;

  add("phi_3.5_moe", model_family::phimoe, "phimoe", 4096, 6400, 16, 2, 32).jitter = 0.01;

  add("jetmoe_8b", model_family::jetmoe, "jetmoe", 2048, 5632, 8, 2, 24).renormalize = true;

  auto& base_8 = add("switch_base_8", model_family::switch_transformers, "switch_transformers", 768, 3072, 8, 1, 12);
  base_8.capacity = 64;
  base_8.decoder_layers = 12;
  base_8.moe_layers = every(12, 1, 2);
  base_8.decoder_moe_layers = every(12, 1, 2);

  auto& oss = add("gpt_oss_20b", model_family::gpt_oss, "gpt_oss", 2880, 2880, 32, 4, 24);
  oss.quantization = "mxfp4";
  oss.renormalize = true;
  oss.router_bias = true;
  oss.clamp = 7;

  add("llama4_scout", model_family::llama4, "llama4", 5120, 8192, 16, 1, 48).shared_hidden = 8192;

  auto& megatron = add("megatron", model_family::megatron, "megatron", 512, 768, 8, 2, 4);
  megatron.renormalize = true;
  megatron.softmax_first = false;
  megatron.capacity_factor = 1.25;
  megatron.moe_layers = every(4, 1);
  return out;
}

}  // namespace sluice::test
