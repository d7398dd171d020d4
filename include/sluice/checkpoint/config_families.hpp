/// read_config: what the keys of each family mean. A rule that differs from one family to the next stands here, once.
///
///   sparse blocks   Switch: i % step == 1 (step 1: all)   Qwen: (i + 1) % step == 0 and not in mlp_only_layers
///                   DeepSeek: i >= first_k_dense_replace and i % moe_layer_freq == 0
///                   Llama-4: moe_layers, else every step-th   Megatron: i % moe_layer_freq == 0, or a list of 0 and 1
///                   GLM-5, DeepSeek-V3.2: "sparse" in mlp_layer_types   LFM2: i >= num_dense_layers
///                   Nemotron: "moe" in layers_block_type, E in hybrid_override_pattern
///                   Ernie: (i + 1) % interval == 0 between two bounds
///                   Jamba: i % period == offset   Arctic: (i + 1) % moe_layer_frequency == 0
///                   all others: every block
///   weights         DeepSeek-V2: divided by their sum or scaled, not both   DeepSeek-V3: divided, then scaled
///                   OLMoE, Qwen, LFM2: norm_topk_prob   Switch, Phi, Llama-4, Jamba: raw
///                   MiniMax, Hunyuan, DBRX, Ernie: divided   LongCat: scaled   Nemotron, DeepSeek-V4: as DeepSeek-V3
///                    Arctic: divided if k > 1   Granite: as JetMoE
///                   Mixtral, JetMoE, GPT-OSS, Megatron without pre-softmax: softmax over the choice, which is the same
///                   as dividing by the sum
///   experts by id   DeepSeek-V4: num_hash_layers, or "hash_moe" in mlp_layer_types
///   groups          DeepSeek-V2: best expert   DeepSeek-V3: two best
///
/// Read from the configuration and modelling files that the families publish. Where the vendor's own code and a later
/// port disagree (DeepSeek renormalises only if k > 1), the vendor's is followed.
#pragma once

#include <sluice/checkpoint/config_blocks.hpp>
#include <sluice/checkpoint/config_keys.hpp>
#include <sluice/checkpoint/config_scored.hpp>
#include <sluice/checkpoint/json_object.hpp>
#include <sluice/checkpoint/model_family.hpp>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// Every how many blocks one is sparse; 0: none is.
inline index_t switch_step(const json_object& json, const char* step, const char* count, index_t layers) {
  if (const auto given = json.integer_if_given({step}, {0, layer_counts.most})) return *given;
  const auto sparse = json.integer_if_given({count}, {0, layers});
  if (!sparse) json.refuse(step, std::string("is missing, and so is \"") + count + "\"");
  return *sparse == 0 ? 0 : layers / *sparse;
}

inline std::vector<index_t> switch_blocks(index_t layers, index_t step) {
  return blocks_where(layers, [step](index_t i) { return step == 1 || (step > 0 && i % step == 1); });
}

inline void read_switch(const json_object& json, model_config& config) {
  if (config.top_k != 1) json.refuse("num_selected_experts", "must be 1, is " + std::to_string(config.top_k));
  json.expect_boolean({"is_gated_act"}, false);
  config.capacity = json.integer({"expert_capacity"}, capacities, 64);
  config.router_bias = json.boolean({"router_bias"}, false);
  config.decoder_layers = json.integer_if_given({"num_decoder_layers"}, layer_counts).value_or(config.layers);
  config.moe_layers = switch_blocks(
      config.layers, switch_step(json, "encoder_sparse_step", "num_sparse_encoder_layers", config.layers));
  config.decoder_moe_layers =
      switch_blocks(config.decoder_layers,
                    switch_step(json, "decoder_sparse_step", "num_sparse_decoder_layers", config.decoder_layers));
}

inline void read_qwen(const json_object& json, model_config& config) {
  const bool third_generation = config.family == model_family::qwen3_next;
  if (config.family == model_family::qwen2_moe || third_generation)
    config.shared_hidden = shared_width(json, {"shared_expert_intermediate_size"});
  config.renormalize = json.boolean({"norm_topk_prob"}, third_generation);
  const index_t step = json.integer({"decoder_sparse_step"}, layer_counts, 1);
  std::vector<char> dense(static_cast<std::size_t>(config.layers), 0);
  for (const index_t i :
       json.integers_if_given({"mlp_only_layers"}, {0, config.layers - 1}).value_or(std::vector<index_t>()))
    dense[static_cast<std::size_t>(i)] = 1;
  config.moe_layers = blocks_where(
      config.layers, [&](index_t i) { return (i + 1) % step == 0 && dense[static_cast<std::size_t>(i)] == 0; });
}

inline void read_granite(const json_object& json, model_config& config) {
  config.renormalize = true;
  config.shared_hidden = json.integer_if_given({"shared_intermediate_size"}, {0, widths.most}).value_or(0);
}

inline void read_hunyuan(const json_object& json, model_config& config) {
  json.expect_boolean({"norm_topk_prob"}, true);
  json.expect_boolean({"moe_drop_tokens"}, false);
  config.renormalize = true;
  const index_t shared = json.common_integer_if_given({"num_shared_expert"}, {0, 64}).value_or(1);
  config.shared_hidden = shared * config.hidden;
  const index_t dense = json.integer({"moe_layer_num_skipped"}, {0, layer_counts.most}, 0);
  config.moe_layers = blocks_where(config.layers, [&](index_t i) { return i >= dense; });
}

inline void read_jamba(const json_object& json, model_config& config) {
  const index_t period = json.integer({"expert_layer_period"}, layer_counts, 2);
  const index_t offset = json.integer({"expert_layer_offset"}, {0, period - 1}, period > 1 ? 1 : 0);
  // A layer of one expert is a dense layer.
  config.moe_layers =
      blocks_where(config.layers, [&](index_t i) { return config.experts > 1 && i % period == offset; });
}

inline void read_dbrx(const json_object& ffn, model_config& config) {
  if (const auto activation = ffn.object_if_given({"ffn_act_fn"})) activation->expect_text({"name"}, "silu");
  // The power of the norm that weights are divided by.
  config.renormalize = !ffn.says_null({"moe_normalize_expert_weights"});
  if (const auto power = ffn.number_if_given({"moe_normalize_expert_weights"}, 0, largest_factor);
      power.value_or(1) != 1)
    ffn.refuse("moe_normalize_expert_weights", "only 1 is supported, not " + json_value(*power).shown());
}

inline void read_arctic(const json_object& json, model_config& config) {
  config.renormalize = config.top_k > 1;
  const index_t step = json.integer({"moe_layer_frequency"}, layer_counts, 2);
  config.moe_layers = blocks_where(config.layers, [&](index_t i) { return (i + 1) % step == 0; });
}

inline void read_phi(const json_object& json, model_config& config) {
  if (config.top_k != 2) json.refuse("num_experts_per_tok", "must be 2, is " + std::to_string(config.top_k));
  config.jitter = json.number_if_given({"router_jitter_noise"}, 0, 1).value_or(0.01);
}

inline void read_gpt_oss(const json_object& json, model_config& config) {
  config.renormalize = true;
  config.router_bias = true;
  config.clamp = json.number_if_given({"swiglu_limit"}, 0, largest_factor).value_or(7.0);
  if (const auto alpha = json.number_if_given({"swiglu_alpha"}, 0, largest_factor); alpha && *alpha != 1.702)
    json.refuse("swiglu_alpha", "only 1.702 is supported, not " + json_value(*alpha).shown());
}

inline void read_llama4(const json_object& json, model_config& config) {
  config.shared_hidden = config.hidden;
  const index_t step = json.integer({"interleave_moe_layer_step"}, layer_counts, 1);
  if (auto given = json.integers_if_given({"moe_layers"}, {0, config.layers - 1})) {
    std::sort(given->begin(), given->end());
    given->erase(std::unique(given->begin(), given->end()), given->end());
    config.moe_layers = *std::move(given);
  } else {
    config.moe_layers = blocks_where(config.layers, [step](index_t i) { return (i + 1) % step == 0; });
  }
}

inline std::vector<index_t> megatron_blocks(const json_object& json, index_t layers) {
  const json_value* const given = json.value_if_given({"moe_layer_freq"});
  if (given == nullptr || !given->is_array()) {
    const index_t step = json.integer_if_given({"moe_layer_freq"}, layer_counts).value_or(1);
    return blocks_where(layers, [step](index_t i) { return i % step == 0; });
  }
  if (given->elements().size() != static_cast<std::size_t>(layers))
    json.refuse("moe_layer_freq",
                "lists " + std::to_string(given->elements().size()) + " of " + std::to_string(layers) + " layers");
  const std::vector<index_t> pattern = *json.integers_if_given({"moe_layer_freq"}, {0, 1});
  return blocks_where(layers, [&](index_t i) { return pattern[static_cast<std::size_t>(i)] == 1; });
}

inline void read_megatron(const json_object& json, model_config& config) {
  for (const char* gated : {"swiglu", "gated_linear_unit"}) json.expect_boolean({gated}, true);
  for (const char* other : {"moe_router_enable_expert_bias", "moe_apply_probs_on_input"})
    json.expect_boolean({other}, false);
  for (const char* other : {"moe_router_num_groups", "moe_router_group_topk", "moe_router_topk_limited_devices"})
    if (json.value_if_given({other}) != nullptr) json.refuse(other, "is not supported");
  json.expect_text({"moe_router_score_function"}, "softmax");
  json.expect_text({"moe_token_drop_policy"}, "probs");
  if (json.text_if_given({"moe_router_load_balancing_type"}) == "sinkhorn")
    json.refuse("moe_router_load_balancing_type", "\"sinkhorn\" is not supported");

  config.softmax_first = json.boolean({"moe_router_pre_softmax"}, false);
  if (config.top_k == 1 && !config.softmax_first)
    json.refuse("moe_router_pre_softmax", "must be true if moe_router_topk is 1: a softmax over one logit is always 1");
  config.renormalize = !config.softmax_first;
  config.scaling = json.number_if_given({"moe_router_topk_scaling_factor"}, 0, largest_factor).value_or(1.0);
  config.capacity_factor = json.number_if_given({"moe_expert_capacity_factor"}, 0, largest_factor).value_or(0.0);
  config.shared_hidden = json.integer_if_given({"moe_shared_expert_intermediate_size"}, {0, widths.most}).value_or(0);
  config.moe_layers = megatron_blocks(json, config.layers);
}

inline void read_gemma4(const json_object& json, model_config& config) {
  json.expect_boolean({"enable_moe_block"}, true);
  json.expect_boolean({"use_double_wide_mlp"}, false);
  config.renormalize = true;
  config.shared_hidden = json.integer({"intermediate_size"}, widths);
  config.norm_epsilon = json.number_if_given({"rms_norm_eps"}, 0, 1).value_or(1e-6);
}

/// One of the numbers that all families have; `usual` stands in for it, unless that is 0.
inline index_t common_number(const json_object& json, const common_keys& keys, json_key key, integer_range range,
                             index_t usual = 0) {
  if (keys.may_be_lists)
    if (const auto given = json.common_integer_if_given(key, range)) return *given;
  return usual == 0 ? json.integer(key, range) : json.integer(key, range, usual);
}

/// How many blocks there are: by their number, or by the list of their kinds where that stands alone.
inline index_t block_count(const json_object& json, const common_keys& keys) {
  if (keys.kinds == nullptr || json.value_if_given(keys.layers) != nullptr)
    return json.integer(keys.layers, layer_counts);
  const auto kinds = json.texts_if_given({keys.kinds});
  const index_t count = kinds ? static_cast<index_t>(kinds->size()) : 0;
  if (count < 1 || count > layer_counts.most)
    json.refuse(keys.layers.name, std::string("is missing, and \"") + keys.kinds + "\" lists " +
                                      std::to_string(count) + " blocks");
  return count;
}

/// Fills what the object says of a model whose family is known. Throws file_error.
inline void read_config(const json_object& json, model_config& config) {
  const common_keys& keys = keys_of(config.family);
  for (const char* name : {keys.activation.name, keys.activation.alias})
    if (name != nullptr) json.expect_text({name}, keys.only_activation);
  const json_object experts = keys.within == nullptr ? json : json.object({keys.within});
  config.inputs = json.integer(keys.inputs, widths);
  // Experts of some families are as wide as dense blocks unless they have a width of their own.
  const bool own_width = keys.usual_hidden == nullptr || experts.value_if_given(keys.hidden) != nullptr;
  config.hidden = common_number(experts, keys, own_width ? keys.hidden : json_key{keys.usual_hidden}, widths);
  config.layers = block_count(json, keys);
  config.experts = common_number(experts, keys, keys.experts, expert_counts, keys.usual_experts);
  config.top_k = common_number(experts, keys, keys.top_k, expert_counts, keys.usual_top_k);
  if (config.top_k > config.experts)  // zero experts never make up for those that are missing
    experts.refuse(keys.top_k.name, std::to_string(config.top_k) + " of " + std::to_string(config.experts) +
                                        " experts cannot be chosen");
  config.moe_layers = blocks_where(config.layers, [](index_t) { return true; });
  config.next_token_layers =
      json.integer_if_given({"num_nextn_predict_layers", "mtp_num_hidden_layers"}, {0, layer_counts.most}).value_or(0);

  switch (config.family) {
    case model_family::switch_transformers:
      read_switch(json, config);
      break;
    case model_family::mixtral:
      config.renormalize = true;
      break;
    case model_family::olmoe:
      config.renormalize = json.boolean({"norm_topk_prob"}, false);
      break;
    case model_family::qwen2_moe:
    case model_family::qwen3_moe:
    case model_family::qwen3_next:
      read_qwen(json, config);
      break;
    case model_family::deepseek_v2:
    case model_family::deepseek_v3:
    case model_family::glm4_moe:
    case model_family::dots1:
      read_deepseek(json, config);
      break;
    case model_family::phimoe:
      read_phi(json, config);
      break;
    case model_family::jetmoe:
      json.expect_boolean({"glu"}, true);
      config.renormalize = true;
      break;
    case model_family::gpt_oss:
      read_gpt_oss(json, config);
      break;
    case model_family::llama4:
      read_llama4(json, config);
      break;
    case model_family::megatron:
      read_megatron(json, config);
      break;
    case model_family::minimax_m2:
      read_minimax(json, config);
      break;
    case model_family::lfm2_moe:
      read_lfm2(json, config);
      break;
    case model_family::granitemoe:
      read_granite(json, config);
      break;
    case model_family::hunyuan_v1_moe:
      read_hunyuan(json, config);
      break;
    case model_family::jamba:
      read_jamba(json, config);
      break;
    case model_family::dbrx:
      read_dbrx(experts, config);
      break;
    case model_family::arctic:
      read_arctic(json, config);
      break;
    case model_family::nemotron_h:
      read_nemotron(json, config);
      break;
    case model_family::ernie4_5_moe:
      read_ernie(json, config);
      break;
    case model_family::longcat_flash:
      read_longcat(json, config);
      break;
    case model_family::deepseek_v4:
      read_deepseek_v4(json, config);
      break;
    case model_family::gemma4:
      read_gemma4(json, config);
      break;
  }
  if (config.moe_layers.empty() && config.decoder_moe_layers.empty())
    throw file_error(json.file(), "none of its " + std::to_string(config.layers) + " blocks is a mixture of experts");
}

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
