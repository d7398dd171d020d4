/// config_json: a model_config in its family's own keys, the counterpart of config_families.
#pragma once

#include <sluice/checkpoint/config_keys.hpp>
#include <sluice/checkpoint/model_family.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// Where the sparse blocks begin and how far they are apart; of one block alone, a step that reaches no second one.
struct sparse_pattern {
  index_t first = 0;
  index_t step = 1;
};

inline sparse_pattern pattern_of(const std::vector<index_t>& blocks, index_t layers) {
  if (blocks.empty()) return {layers, 1};
  const index_t first = blocks.front();
  if (blocks.size() > 1) return {first, blocks[1] - first};
  return {first, first > 0 ? first : layers};
}

inline std::vector<index_t> dense_blocks(const model_config& config) {
  std::vector<index_t> out;
  for (index_t i = 0; i < config.layers; ++i)
    if (!std::binary_search(config.moe_layers.begin(), config.moe_layers.end(), i)) out.push_back(i);
  return out;
}

inline void write_switch_stack(nlohmann::json& json, const std::string& stack, const std::vector<index_t>& blocks,
                               index_t layers) {
  // Blocks 1, 1 + step, ...: a lone block 1 needs a step beyond the end, block 0 alone is a stack of one block.
  const index_t alone = layers == 1 ? 1 : layers;
  json["num_sparse_" + stack + "_layers"] = blocks.size();
  json[stack + "_sparse_step"] = blocks.empty() ? 0 : blocks.size() == 1 ? alone : blocks[1] - blocks[0];
}

inline void write_deepseek(nlohmann::json& json, const model_config& config) {
  const bool third = config.family != model_family::deepseek_v2;
  const sparse_pattern pattern = pattern_of(config.moe_layers, config.layers);
  json["first_k_dense_replace"] = pattern.first;
  json["moe_layer_freq"] = pattern.step;
  json["n_shared_experts"] = config.hidden > 0 ? config.shared_hidden / config.hidden : 0;
  json["norm_topk_prob"] = config.renormalize;
  json["routed_scaling_factor"] = config.scaling;
  json["scoring_func"] = third ? "sigmoid" : "softmax";
  json["topk_method"] = third ? "noaux_tc" : config.groups.limits() ? "group_limited_greedy" : "greedy";
  json["n_group"] = config.groups.groups;
  json["topk_group"] = config.groups.kept;
}

inline void write_megatron(nlohmann::json& json, const model_config& config) {
  json["swiglu"] = true;
  json["moe_router_pre_softmax"] = config.softmax_first;
  json["moe_router_topk_scaling_factor"] = config.scaling;
  json["moe_token_drop_policy"] = "probs";
  if (config.capacity_factor != 0) json["moe_expert_capacity_factor"] = config.capacity_factor;
  if (config.shared_hidden != 0) json["moe_shared_expert_intermediate_size"] = config.shared_hidden;
  std::vector<index_t> pattern(static_cast<std::size_t>(config.layers), 1);
  for (const index_t i : dense_blocks(config)) pattern[static_cast<std::size_t>(i)] = 0;
  json["moe_layer_freq"] = pattern;
}

/// DeepSeek-V4: usually all blocks are mixtures and the first look experts up; otherwise the kind of each is listed.
inline void write_hash_layers(nlohmann::json& json, const model_config& config) {
  const std::vector<index_t>& hashed = config.hash_layers;
  if (config.vocabulary != 0) json["vocab_size"] = config.vocabulary;
  const bool are_first = hashed.empty() || hashed.back() + 1 == static_cast<index_t>(hashed.size());
  if (are_first && static_cast<index_t>(config.moe_layers.size()) == config.layers) {
    json["num_hash_layers"] = hashed.size();
    return;
  }
  std::vector<std::string> kinds(static_cast<std::size_t>(config.layers), "dense");
  const auto mark = [&](const std::vector<index_t>& blocks, const char* kind) {
    for (const index_t i : blocks)
      if (i >= 0 && i < config.layers) kinds[static_cast<std::size_t>(i)] = kind;
  };
  mark(config.moe_layers, "moe");
  mark(hashed, "hash_moe");
  json["mlp_layer_types"] = kinds;
}

inline void write_family(nlohmann::json& json, const model_config& config) {
  switch (config.family) {
    case model_family::switch_transformers:
      json["expert_capacity"] = config.capacity;
      json["router_bias"] = config.router_bias;
      json["num_decoder_layers"] = config.decoder_layers;
      write_switch_stack(json, "encoder", config.moe_layers, config.layers);
      write_switch_stack(json, "decoder", config.decoder_moe_layers, config.decoder_layers);
      break;
    case model_family::qwen2_moe:
    case model_family::qwen3_next:
      json["shared_expert_intermediate_size"] = config.shared_hidden;
      [[fallthrough]];
    case model_family::qwen3_moe:
      json["decoder_sparse_step"] = 1;
      json["mlp_only_layers"] = dense_blocks(config);
      [[fallthrough]];
    case model_family::olmoe:
      json["norm_topk_prob"] = config.renormalize;
      break;
    case model_family::deepseek_v2:
    case model_family::deepseek_v3:
    case model_family::glm4_moe:
    case model_family::dots1:
      write_deepseek(json, config);
      break;
    case model_family::phimoe:
      json["router_jitter_noise"] = config.jitter;
      break;
    case model_family::gpt_oss:
      json["swiglu_limit"] = config.clamp;
      break;
    case model_family::llama4:
      json["moe_layers"] = config.moe_layers;
      break;
    case model_family::megatron:
      write_megatron(json, config);
      break;
    case model_family::minimax_m2:
      json["scoring_func"] = "sigmoid";
      json["use_routing_bias"] = config.selection_bias;
      break;
    case model_family::lfm2_moe:
      json["use_expert_bias"] = config.selection_bias;
      json["norm_topk_prob"] = config.renormalize;
      json["routed_scaling_factor"] = config.scaling;
      json["num_dense_layers"] = pattern_of(config.moe_layers, config.layers).first;
      break;
    case model_family::granitemoe:
      json["shared_intermediate_size"] = config.shared_hidden;
      break;
    case model_family::hunyuan_v1_moe:
      json["num_shared_expert"] = config.hidden > 0 ? config.shared_hidden / config.hidden : 0;
      json["moe_layer_num_skipped"] = pattern_of(config.moe_layers, config.layers).first;
      break;
    case model_family::jamba: {
      const sparse_pattern pattern = pattern_of(config.moe_layers, config.layers);
      json["expert_layer_period"] = (std::max)(pattern.step, pattern.first + 1);
      json["expert_layer_offset"] = pattern.first;
      break;
    }
    case model_family::arctic: {
      const sparse_pattern pattern = pattern_of(config.moe_layers, config.layers);
      json["moe_layer_frequency"] = pattern.first + 1;
      break;
    }
    case model_family::dbrx:
      json["moe_normalize_expert_weights"] = config.renormalize ? nlohmann::json(1) : nlohmann::json(nullptr);
      break;
    case model_family::nemotron_h: {
      std::vector<std::string> kinds(static_cast<std::size_t>(config.layers), "mlp");
      for (const index_t i : config.moe_layers)
        if (i >= 0 && i < config.layers) kinds[static_cast<std::size_t>(i)] = "moe";
      json["layers_block_type"] = kinds;
      json["norm_topk_prob"] = config.renormalize;
      json["routed_scaling_factor"] = config.scaling;
      json["n_group"] = config.groups.groups;
      json["topk_group"] = config.groups.kept;
      if (config.latent != 0) json["moe_latent_size"] = config.latent;
      json["n_shared_experts"] = config.shared_hidden > 0 ? 1 : 0;
      json["moe_shared_expert_intermediate_size"] = config.shared_hidden;
      break;
    }
    case model_family::ernie4_5_moe: {
      const sparse_pattern pattern = pattern_of(config.moe_layers, config.layers);
      json["moe_norm_min"] = config.smallest_sum;
      json["moe_num_shared_experts"] = config.hidden > 0 ? config.shared_hidden / config.hidden : 0;
      json["moe_layer_interval"] = pattern.step == 1 ? 1 : pattern.first + 1;
      json["moe_layer_start_index"] = pattern.first;
      json["moe_layer_end_index"] = config.moe_layers.empty() ? -1 : config.moe_layers.back();
      break;
    }
    case model_family::longcat_flash:
      json["zero_expert_num"] = config.zero_experts;
      json["zero_expert_type"] = "identity";
      json["routed_scaling_factor"] = config.scaling;
      break;
    case model_family::deepseek_v4:
      json["scoring_func"] = "sqrtsoftplus";
      json["routed_scaling_factor"] = config.scaling;
      json["swiglu_limit"] = config.clamp;
      json["n_shared_experts"] = config.hidden > 0 ? config.shared_hidden / config.hidden : 0;
      write_hash_layers(json, config);
      break;
    case model_family::gemma4:
      json["enable_moe_block"] = true;
      json["intermediate_size"] = config.shared_hidden;
      json["rms_norm_eps"] = config.norm_epsilon;
      break;
    case model_family::mixtral:
    case model_family::jetmoe:
      break;
  }
}

inline void write_next_token(nlohmann::json& json, const model_config& config) {
  const index_t count = config.next_token_layers;
  if (count == 0) return;
  json[config.family == model_family::minimax_m2 ? "num_mtp_modules" : "num_nextn_predict_layers"] = count;
  if (config.family != model_family::nemotron_h || count < 1) return;
  json["num_nextn_predict_layers"] = 1;  // one prediction by all of these blocks, the last of which is the mixture
  std::vector<std::string> kinds(static_cast<std::size_t>((std::min)(count, layer_counts.most)), "attention");
  kinds.back() = "moe";
  json["mtp_layers_block_type"] = kinds;
}

inline nlohmann::json quantization_json(const model_config& config) {
  const weight_encoding& how = config.encoding;
  nlohmann::json out = {{"quant_method", config.quantization}};
  if (!how.format.empty()) out["format"] = how.format;
  if (how.bits != 0) out["bits"] = how.bits;
  if (how.group != 0) out["group_size"] = how.group;
  if (how.tile_rows != 0) out["weight_block_size"] = {how.tile_rows, how.tile_inputs};
  return out;
}

inline nlohmann::json config_json(const model_config& config) {
  const common_keys& keys = keys_of(config.family);
  nlohmann::json numbers = {{keys.inputs.name, config.inputs},
                            {keys.layers.name, config.layers},
                            {keys.activation.name, keys.only_activation}};
  nlohmann::json experts = {{keys.hidden.name, config.hidden},
                            {keys.experts.name, config.experts},
                            {keys.top_k.name, config.top_k}};
  write_family(experts, config);
  if (keys.within == nullptr)
    numbers.update(experts);
  else
    numbers[keys.within] = std::move(experts);

  write_next_token(numbers, config);

  const family_spelling& spelling = spelling_of(config.family, config.model_type);
  nlohmann::json out = std::move(numbers);
  for (std::string_view nest = spelling.nest; !nest.empty();) {  // "thinker_config.text_config": the inner one first
    const auto dot = nest.rfind('.');
    nlohmann::json outer;
    outer[std::string(dot == std::string_view::npos ? nest : nest.substr(dot + 1))] = std::move(out);
    out = std::move(outer);
    nest = dot == std::string_view::npos ? std::string_view() : nest.substr(0, dot);
  }
  out["model_type"] = config.model_type;
  if (!spelling.architecture.empty()) out["architectures"] = {spelling.architecture};
  if (!config.quantization.empty()) out["quantization_config"] = quantization_json(config);
  return out;
}

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
