/// common_keys: how each family spells the numbers that all of them have, for config_families to read and
/// config_writer to write.
#pragma once

#include <sluice/checkpoint/json_object.hpp>
#include <sluice/checkpoint/model_family.hpp>

#include <array>

namespace sluice::inline SLUICE_ISA {

namespace detail {

inline constexpr integer_range widths{1, index_t{1} << 24U};
inline constexpr integer_range expert_counts{1, index_t{1} << 20U};
inline constexpr integer_range layer_counts{1, index_t{1} << 16U};
inline constexpr integer_range capacities{1, index_t{1} << 30U};
inline constexpr double largest_factor = 1e6;

/// Sizes must be in the file. Counts of experts have a default (else 0) where the family's configuration class has one
/// that all its releases share.
struct common_keys {
  model_family family;
  json_key hidden;
  json_key experts;
  index_t usual_experts;
  index_t usual_top_k;
  json_key inputs{"hidden_size"};
  json_key layers{"num_hidden_layers"};
  json_key top_k{"num_experts_per_tok"};
  json_key activation{"hidden_act"};
  const char* only_activation = "silu";
  const char* usual_hidden = nullptr;  ///< the width of dense blocks, where experts may have none of their own
  bool may_be_lists = false;  ///< hidden, experts and top_k may be lists, a number a block
  const char* within = nullptr;  ///< the object that holds hidden, experts and top_k
  const char* kinds = nullptr;  ///< the list of the kinds of all blocks, where a file may have no number of them
};

inline constexpr auto family_keys = std::to_array<common_keys>({
    {model_family::mixtral, {"intermediate_size"}, {"num_local_experts", "num_experts"}, 8, 2},
    {model_family::olmoe, {"intermediate_size"}, {"num_experts", "num_local_experts"}, 64, 8},
    {model_family::qwen2_moe, {"moe_intermediate_size"}, {"num_experts", "num_local_experts"}, 0, 0},
    {model_family::qwen3_moe, {"moe_intermediate_size"}, {"num_experts", "num_local_experts"}, 0, 0},
    {model_family::deepseek_v2, {"moe_intermediate_size"}, {"n_routed_experts", "num_local_experts"}, 0, 0},
    {model_family::deepseek_v3, {"moe_intermediate_size"}, {"n_routed_experts", "num_local_experts"}, 0, 0},
    {model_family::phimoe, {"intermediate_size"}, {"num_local_experts", "num_experts"}, 16, 2},
    {model_family::llama4, {"intermediate_size"}, {"num_local_experts", "num_experts"}, 0, 1},
    {.family = model_family::gpt_oss,
     .hidden = {"intermediate_size"},
     .experts = {"num_local_experts", "num_experts"},
     .usual_experts = 0,
     .usual_top_k = 4,
     .top_k = {"num_experts_per_tok", "experts_per_token"}},
    {.family = model_family::jetmoe,
     .hidden = {"intermediate_size", "ffn_hidden_size"},
     .experts = {"num_local_experts", "moe_num_experts"},
     .usual_experts = 8,
     .usual_top_k = 2,
     .layers = {"num_hidden_layers", "num_layers"},
     .top_k = {"num_experts_per_tok", "moe_top_k"},
     .activation = {"activation_function"}},
    {.family = model_family::switch_transformers,
     .hidden = {"d_ff"},
     .experts = {"num_experts"},
     .usual_experts = 8,
     .usual_top_k = 1,
     .inputs = {"d_model"},
     .layers = {"num_layers"},
     .top_k = {"num_selected_experts"},
     .activation = {"dense_act_fn", "feed_forward_proj"},
     .only_activation = "relu"},
    {.family = model_family::megatron,
     .hidden = {"moe_ffn_hidden_size"},
     .experts = {"num_moe_experts", "num_experts"},
     .usual_experts = 0,
     .usual_top_k = 2,
     .layers = {"num_layers"},
     .top_k = {"moe_router_topk"},
     .activation = {"activation_func"},
     .usual_hidden = "ffn_hidden_size"},
    {model_family::qwen3_next, {"moe_intermediate_size"}, {"num_experts", "num_local_experts"}, 0, 0},
    {model_family::glm4_moe, {"moe_intermediate_size"}, {"n_routed_experts", "num_local_experts"}, 0, 0},
    {model_family::dots1, {"moe_intermediate_size"}, {"n_routed_experts", "num_local_experts"}, 0, 0},
    {model_family::minimax_m2, {"intermediate_size"}, {"num_local_experts", "num_experts"}, 0, 0},
    {model_family::lfm2_moe, {"moe_intermediate_size"}, {"num_experts", "num_local_experts"}, 32, 4},
    {model_family::granitemoe, {"intermediate_size"}, {"num_local_experts", "num_experts"}, 8, 2},
    {.family = model_family::hunyuan_v1_moe,
     .hidden = {"moe_intermediate_size"},
     .experts = {"num_experts"},
     .usual_experts = 0,
     .usual_top_k = 0,
     .top_k = {"moe_topk"},
     .usual_hidden = "intermediate_size",
     .may_be_lists = true},
    {model_family::jamba, {"intermediate_size"}, {"num_experts", "num_local_experts"}, 16, 2},
    {.family = model_family::dbrx,
     .hidden = {"ffn_hidden_size"},
     .experts = {"moe_num_experts"},
     .usual_experts = 4,
     .usual_top_k = 1,
     .inputs = {"d_model"},
     .layers = {"n_layers"},
     .top_k = {"moe_top_k"},
     .within = "ffn_config"},
    {model_family::arctic, {"intermediate_size"}, {"num_local_experts", "num_experts"}, 8, 1},
    {.family = model_family::nemotron_h,
     .hidden = {"moe_intermediate_size"},
     .experts = {"n_routed_experts", "num_local_experts"},
     .usual_experts = 0,
     .usual_top_k = 2,
     .activation = {"mlp_hidden_act"},
     .only_activation = "relu2",
     .kinds = "layers_block_type"},
    {.family = model_family::ernie4_5_moe,
     .hidden = {"moe_intermediate_size"},
     .experts = {"moe_num_experts", "num_experts"},
     .usual_experts = 0,
     .usual_top_k = 0,
     .top_k = {"moe_k", "num_experts_per_tok"}},
    {.family = model_family::longcat_flash,
     .hidden = {"expert_ffn_hidden_size"},
     .experts = {"n_routed_experts", "num_local_experts"},
     .usual_experts = 0,
     .usual_top_k = 0,
     .layers = {"num_layers"},
     .top_k = {"moe_topk", "num_experts_per_tok"}},
    {.family = model_family::gemma4,
     .hidden = {"moe_intermediate_size"},
     .experts = {"num_experts"},
     .usual_experts = 0,
     .usual_top_k = 0,
     .top_k = {"top_k_experts"},
     .activation = {"hidden_activation"},
     .only_activation = "gelu_pytorch_tanh"},
    {model_family::deepseek_v4, {"moe_intermediate_size"}, {"n_routed_experts", "num_local_experts"}, 0, 0},
});

constexpr const common_keys& keys_of(model_family family) {
  for (const common_keys& keys : family_keys)
    if (keys.family == family) return keys;
  return family_keys.front();
}

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
