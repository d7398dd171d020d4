/// read_config: what the keys of each family mean. A rule that differs from one family to the next stands here, once.
///
///   sparse blocks   Switch: i % step == 1 (step 1: all)   Qwen: (i + 1) % step == 0 and not in mlp_only_layers
///                   DeepSeek: i >= first_k_dense_replace and i % moe_layer_freq == 0
///                   Llama-4: moe_layers, else every step-th   Megatron: i % moe_layer_freq == 0, or a list of 0 and 1
///                   all others: every block
///   weights         DeepSeek-V2: divided by their sum or scaled, not both   DeepSeek-V3: divided, then scaled
///                   OLMoE, Qwen: norm_topk_prob   Switch, Phi, Llama-4: raw
///                   Mixtral, JetMoE, GPT-OSS, Megatron without pre-softmax: softmax over the choice, which is the same
///                   as dividing by the sum
///   groups          DeepSeek-V2: best expert   DeepSeek-V3: two best, masked experts score 0
///
/// Read from the configuration and modelling files that the families publish. Where the vendor's own code and a later
/// port disagree (DeepSeek renormalises only if k > 1), the vendor's is followed.
#pragma once

#include <sluice/checkpoint/config_keys.hpp>
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

template <typename IsSparse>
std::vector<index_t> blocks_where(index_t layers, const IsSparse& is_sparse) {
  std::vector<index_t> out;
  for (index_t i = 0; i < layers; ++i)
    if (is_sparse(i)) out.push_back(i);
  return out;
}

inline void check_groups(const json_object& json, const model_config& config) {
  try {
    config.groups.validate(config.experts, config.top_k);
  } catch (const std::invalid_argument& error) {
    throw file_error(json.file(), std::string("keys \"n_group\" and \"topk_group\": ") + error.what());
  }
}

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

/// The width of a shared expert: 0 and null say that there is none.
inline index_t shared_width(const json_object& json, json_key key) {
  if (json.says_null(key)) return 0;
  return json.integer(key, {0, widths.most});
}

inline void read_qwen(const json_object& json, model_config& config) {
  if (config.family == model_family::qwen2_moe)
    config.shared_hidden = shared_width(json, {"shared_expert_intermediate_size"});
  config.renormalize = json.boolean({"norm_topk_prob"}, false);
  const index_t step = json.integer({"decoder_sparse_step"}, layer_counts, 1);
  std::vector<char> dense(static_cast<std::size_t>(config.layers), 0);
  for (const index_t i :
       json.integers_if_given({"mlp_only_layers"}, {0, config.layers - 1}).value_or(std::vector<index_t>()))
    dense[static_cast<std::size_t>(i)] = 1;
  config.moe_layers = blocks_where(
      config.layers, [&](index_t i) { return (i + 1) % step == 0 && dense[static_cast<std::size_t>(i)] == 0; });
}

inline void read_deepseek(const json_object& json, model_config& config) {
  const bool third = config.family == model_family::deepseek_v3;
  json.expect_text({"scoring_func"}, third ? "sigmoid" : "softmax");
  const bool divides = json.boolean({"norm_topk_prob"}, third) && config.top_k > 1;
  const double factor = json.number_if_given({"routed_scaling_factor"}, 0, largest_factor).value_or(third ? 2.5 : 1.0);
  config.renormalize = divides;
  config.scaling = third || !divides ? factor : 1.0;

  const index_t most_groups = config.experts;
  if (third) {
    json.expect_text({"topk_method"}, "noaux_tc");
    config.groups = {json.integer({"n_group"}, {1, most_groups}, 8), json.integer({"topk_group"}, {1, most_groups}, 4),
                     group_limit::group_score::sum_of_two, true};
  } else if (const auto method = json.text_if_given({"topk_method"}).value_or("greedy");
             method == "group_limited_greedy") {
    config.groups = {json.integer({"n_group"}, {1, most_groups}), json.integer({"topk_group"}, {1, most_groups}),
                     group_limit::group_score::best, false};
  } else if (method != "greedy") {
    json.refuse("topk_method",
                "only \"greedy\" and \"group_limited_greedy\" are supported, not \"" + printable(method) + "\"");
  }
  check_groups(json, config);

  const index_t usual_shared = third && !json.says_null({"n_shared_experts"}) ? 1 : 0;
  const index_t shared =
      json.integer_if_given({"n_shared_experts"}, {0, expert_counts.most}).value_or(usual_shared);
  if (shared > widths.most / config.hidden)
    json.refuse("n_shared_experts", std::to_string(shared) + " of width " + std::to_string(config.hidden) +
                                        " are wider than " + std::to_string(widths.most));
  config.shared_hidden = shared * config.hidden;

  const index_t dense = json.integer({"first_k_dense_replace"}, {0, layer_counts.most}, third ? 3 : 0);
  const index_t step = json.integer({"moe_layer_freq"}, layer_counts, 1);
  config.moe_layers = blocks_where(config.layers, [&](index_t i) { return i >= dense && i % step == 0; });
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

/// Fills what the object says of a model whose family is known. Throws file_error.
inline void read_config(const json_object& json, model_config& config) {
  const common_keys& keys = keys_of(config.family);
  for (const char* name : {keys.activation.name, keys.activation.alias})
    if (name != nullptr) json.expect_text({name}, keys.only_activation);
  config.inputs = json.integer(keys.inputs, widths);
  // Megatron's experts are as wide as its dense blocks unless they have a width of their own.
  const bool own_width = config.family != model_family::megatron || json.value_if_given(keys.hidden) != nullptr;
  config.hidden = json.integer(own_width ? keys.hidden : json_key{"ffn_hidden_size"}, widths);
  config.layers = json.integer(keys.layers, layer_counts);
  const auto count = [&](json_key key, index_t usual, integer_range range) {
    return usual == 0 ? json.integer(key, range) : json.integer(key, range, usual);
  };
  config.experts = count(keys.experts, keys.usual_experts, expert_counts);
  config.top_k = count(keys.top_k, keys.usual_top_k, expert_counts);
  if (config.top_k > config.experts)
    json.refuse(keys.top_k.name,
                std::to_string(config.top_k) + " of " + std::to_string(config.experts) + " experts cannot be chosen");
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
      read_qwen(json, config);
      break;
    case model_family::deepseek_v2:
    case model_family::deepseek_v3:
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
  }
  if (config.moe_layers.empty() && config.decoder_moe_layers.empty())
    throw file_error(json.file(), "none of its " + std::to_string(config.layers) + " blocks is a mixture of experts");
}

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
