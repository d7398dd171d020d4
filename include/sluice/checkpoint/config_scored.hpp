/// What the keys mean of families that choose beside a bias: DeepSeek's and those that route as they do.
#pragma once

#include <sluice/checkpoint/config_blocks.hpp>
#include <sluice/checkpoint/config_keys.hpp>
#include <sluice/checkpoint/json_object.hpp>
#include <sluice/checkpoint/model_family.hpp>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// What a family's configuration class has where the file is silent.
struct deepseek_defaults {
  model_family family;
  bool scores_apart;  // sigmoid of each logit, and groups by the sum of their two best
  index_t shared;
  bool renormalize;
  double scaling;
  index_t groups;
  index_t kept;
  index_t dense;
};

inline constexpr auto deepseek_families = std::to_array<deepseek_defaults>({
    {model_family::deepseek_v2, false, 0, false, 1.0, 0, 0, 0},
    {model_family::deepseek_v3, true, 1, true, 2.5, 8, 4, 3},
    {model_family::glm4_moe, true, 1, true, 1.0, 1, 1, 1},
    {model_family::dots1, true, 0, false, 1.0, 1, 1, 0},
});

inline void read_deepseek(const json_object& json, model_config& config) {
  const deepseek_defaults& usual = *std::find_if(deepseek_families.begin(), deepseek_families.end(),
                                                 [&](const auto& row) { return row.family == config.family; });
  const bool third = usual.scores_apart;
  // dots.llm1 has the name of its method in both keys.
  if (config.family != model_family::dots1 || json.text_if_given({"scoring_func"}) != "noaux_tc")
    json.expect_text({"scoring_func"}, third ? "sigmoid" : "softmax");
  // DeepSeek's own code leaves the weight of a single expert as it is; other vendors divide it by itself.
  const bool is_left =
      config.top_k == 1 && (config.family == model_family::deepseek_v2 || config.family == model_family::deepseek_v3);
  const bool divides = json.boolean({"norm_topk_prob"}, usual.renormalize) && !is_left;
  const double factor =
      json.number_if_given({"routed_scaling_factor"}, 0, largest_factor).value_or(usual.scaling);
  config.renormalize = divides;
  config.scaling = third || !divides ? factor : 1.0;

  const index_t most_groups = config.experts;
  if (third) {
    json.expect_text({"topk_method"}, "noaux_tc");
    config.groups = {json.integer({"n_group"}, {1, most_groups}, usual.groups),
                     json.integer({"topk_group"}, {1, most_groups}, usual.kept),
                     group_limit::group_score::sum_of_two};
  } else if (const auto method = json.text_if_given({"topk_method"}).value_or("greedy");
             method == "group_limited_greedy") {
    config.groups = {json.integer({"n_group"}, {1, most_groups}), json.integer({"topk_group"}, {1, most_groups}),
                     group_limit::group_score::best};
  } else if (method != "greedy") {
    json.refuse("topk_method",
                "only \"greedy\" and \"group_limited_greedy\" are supported, not \"" + printable(method) + "\"");
  }
  check_groups(json, config);

  const index_t usual_shared = json.says_null({"n_shared_experts"}) ? 0 : usual.shared;
  const index_t shared =
      json.integer_if_given({"n_shared_experts"}, {0, expert_counts.most}).value_or(usual_shared);
  if (shared > widths.most / config.hidden)
    json.refuse("n_shared_experts", std::to_string(shared) + " of width " + std::to_string(config.hidden) +
                                        " are wider than " + std::to_string(widths.most));
  config.shared_hidden = shared * config.hidden;

  if (const auto types = json.texts_if_given({"mlp_layer_types"})) {
    config.moe_layers = blocks_of_kind(json, "mlp_layer_types", *types, config.layers, "sparse");
    return;
  }
  const index_t dense = json.integer({"first_k_dense_replace"}, {0, layer_counts.most}, usual.dense);
  const index_t step = json.integer({"moe_layer_freq"}, layer_counts, 1);
  config.moe_layers = blocks_where(config.layers, [&](index_t i) { return i >= dense && i % step == 0; });
}

inline void read_minimax(const json_object& json, model_config& config) {
  json.expect_text({"scoring_func"}, "sigmoid");
  if (const auto width = json.integer_if_given({"shared_intermediate_size"}, {0, widths.most}); width.value_or(0) != 0)
    json.refuse("shared_intermediate_size", "a shared expert is not supported, this one has width " +
                                                std::to_string(*width));
  config.selection_bias = json.boolean({"use_routing_bias"}, true);
  config.renormalize = true;
  if (const auto modules = json.integer_if_given({"num_mtp_modules"}, {0, layer_counts.most}))
    config.next_token_layers =
        next_token_blocks(json, "num_mtp_modules", json.boolean({"use_mtp"}, true) ? *modules : 0,
                          json.integer({"mtp_transformer_layers"}, layer_counts, 1));
}

inline void read_lfm2(const json_object& json, model_config& config) {
  config.selection_bias = json.boolean({"use_expert_bias"}, true);
  config.renormalize = json.boolean({"norm_topk_prob"}, true);
  config.scaling = json.number_if_given({"routed_scaling_factor"}, 0, largest_factor).value_or(1.0);
  const index_t dense = json.integer({"num_dense_layers"}, {0, layer_counts.most}, 2);
  config.moe_layers = blocks_where(config.layers, [&](index_t i) { return i >= dense; });
}

/// The kinds of blocks, whichever way they are written: a list of words or "MEM*E".
inline std::vector<std::string> block_kinds(const json_object& json, json_key list, json_key pattern) {
  if (const auto words = json.texts_if_given(list)) return *words;
  std::vector<std::string> kinds;
  for (const char letter : json.text_if_given(pattern).value_or(""))
    kinds.push_back(letter == 'E' ? "moe" : std::string(1, letter));
  return kinds;
}

inline void read_nemotron(const json_object& json, model_config& config) {
  config.latent = json.integer_if_given({"moe_latent_size"}, widths).value_or(0);
  json.expect_boolean({"mlp_bias"}, false);
  config.renormalize = json.boolean({"norm_topk_prob"}, true);
  config.scaling = json.number_if_given({"routed_scaling_factor"}, 0, largest_factor).value_or(1.0);
  config.groups = {json.integer({"n_group"}, {1, config.experts}, 1),
                   json.integer({"topk_group"}, {1, config.experts}, 1), group_limit::group_score::sum_of_two};
  check_groups(json, config);
  const index_t shared = json.integer_if_given({"n_shared_experts"}, {0, expert_counts.most}).value_or(1);
  if (shared > 0) config.shared_hidden = shared_width(json, {"moe_shared_expert_intermediate_size"});
  const std::vector<std::string> kinds = block_kinds(json, {"layers_block_type"}, {"hybrid_override_pattern"});
  config.moe_layers = blocks_of_kind(json, "hybrid_override_pattern", kinds, config.layers, "moe");
  // Each prediction of a further token takes several blocks, by a pattern of their own: usually attention and mixture.
  const auto further = block_kinds(json, {"mtp_layers_block_type"}, {"mtp_hybrid_override_pattern"});
  config.next_token_layers = next_token_blocks(json, "num_nextn_predict_layers", config.next_token_layers,
                                               further.empty() ? 2 : static_cast<index_t>(further.size()));
}

inline void read_ernie(const json_object& json, model_config& config) {
  json.expect_boolean({"use_bias"}, false);
  config.renormalize = true;
  config.smallest_sum = json.number_if_given({"moe_norm_min"}, 0, 1).value_or(1e-12);
  const index_t shared = json.integer_if_given({"moe_num_shared_experts"}, {0, 64}).value_or(2);
  config.shared_hidden = shared * config.hidden;
  const index_t first = json.integer({"moe_layer_start_index"}, {0, layer_counts.most}, 1);
  const index_t last = json.integer({"moe_layer_end_index"}, {-1, layer_counts.most}, -1);
  const index_t step = json.integer({"moe_layer_interval"}, layer_counts, 1);
  config.moe_layers = blocks_where(config.layers, [&](index_t i) {
    return (i + 1) % step == 0 && i >= first && (last < 0 || i <= last);
  });
}

inline void read_longcat(const json_object& json, model_config& config) {
  json.expect_boolean({"router_bias"}, false);
  json.expect_boolean({"norm_topk_prob"}, false);
  json.expect_text({"zero_expert_type"}, "identity");
  config.zero_experts = json.integer_if_given({"zero_expert_num"}, {0, expert_counts.most}).value_or(0);
  config.scaling = json.number_if_given({"routed_scaling_factor"}, 0, largest_factor).value_or(6.0);
}

inline void read_deepseek_v4(const json_object& json, model_config& config) {
  json.expect_text({"scoring_func"}, "sqrtsoftplus");
  json.expect_boolean({"norm_topk_prob"}, true);
  config.renormalize = true;
  config.scaling = json.number_if_given({"routed_scaling_factor"}, 0, largest_factor).value_or(1.5);
  if (!json.says_zero({"swiglu_limit"}))
    config.clamp = json.number_if_given({"swiglu_limit"}, 0, largest_factor).value_or(10.0);
  config.shared_hidden =
      json.integer_if_given({"n_shared_experts"}, {0, 64}).value_or(json.says_null({"n_shared_experts"}) ? 0 : 1) *
      config.hidden;
  // Every block is a mixture; the first look their experts up by the token's id.
  if (const auto types = json.texts_if_given({"mlp_layer_types"})) {
    config.hash_layers = blocks_of_kind(json, "mlp_layer_types", *types, config.layers, "hash_moe");
    config.moe_layers = blocks_of_kind(json, "mlp_layer_types", *types, config.layers, "moe");
    config.moe_layers.insert(config.moe_layers.end(), config.hash_layers.begin(), config.hash_layers.end());
    std::sort(config.moe_layers.begin(), config.moe_layers.end());
  } else {
    const index_t looked_up = json.integer({"num_hash_layers"}, {0, layer_counts.most}, 3);
    config.hash_layers = blocks_where(config.layers, [&](index_t i) { return i < looked_up; });
  }
  if (!config.hash_layers.empty()) config.vocabulary = json.integer({"vocab_size"}, widths);
}

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
