/// model_family, block_id, model_config: the families of published models that sluice reads, and what it must know of a
/// model.
///
/// The family decides how a block routes and what its tensors are called; the numbers decide its size. A plain value:
/// fill it by hand, read it from a config.json (model_config.hpp), compare it, write it.
#pragma once

#include <sluice/core/types.hpp>
#include <sluice/router/tokens_choose/group_limit.hpp>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::inline SLUICE_ISA {

enum class model_family {
  switch_transformers,
  mixtral,
  olmoe,
  qwen2_moe,
  qwen3_moe,
  deepseek_v2,  ///< and DeepSeekMoE-16B, DeepSeek-OCR, the smaller DeepSeek-VL2
  deepseek_v3,  ///< and V3.1, V3.2, Kimi-K2, Kimi-K2.5, Kimi-VL, Moonlight
  phimoe,
  jetmoe,
  gpt_oss,
  llama4,
  megatron,
  qwen3_next,  ///< and Qwen3.5, Qwen3.6
  glm4_moe,    ///< GLM-4.5 to GLM-5
  dots1,
  minimax_m2,
  lfm2_moe,
  granitemoe,  ///< and those with a shared expert: Granite 4.0
  hunyuan_v1_moe,
  jamba,
  dbrx,
  arctic,
  nemotron_h,
  ernie4_5_moe,
  longcat_flash,
  deepseek_v4,
  gemma4
};

/// One mixture of a model: the number of its block, in the decoder of models that also have an encoder.
struct block_id {
  index_t layer = 0;
  bool decoder = false;

  friend bool operator==(const block_id&, const block_id&) = default;
};

inline std::string to_string(const block_id& block) {
  return (block.decoder ? "decoder." : "layers.") + std::to_string(block.layer);
}

/// How a file says that its quantised weights are laid down; which of them are is seen from the tensors.
struct weight_encoding {
  std::string format = {};  ///< checkpoint_format of GPTQ, version of AWQ, format of compressed-tensors
  index_t bits = 0;         ///< of a code; 0: the file does not say
  index_t group = 0;        ///< inputs that share a scale; -1: all of a row; 0: the file does not say
  index_t tile_rows = 0;    ///< FP8: weights that share a scale; 0: the file does not say
  index_t tile_inputs = 0;

  friend bool operator==(const weight_encoding&, const weight_encoding&) = default;
};

struct model_config {
  model_family family{};
  /// One that sluice knows: "llama4" nests its layers in a multimodal model, "llama4_text" is bare, "deepseek" is
  /// DeepSeekMoE-16B. Of a derivative that only its architecture gives away, the one of that architecture.
  std::string model_type;
  std::string quantization;   ///< quant_method of the file ("fp8", "mxfp4", ...); empty: weights are plain numbers
  weight_encoding encoding = {};
  index_t inputs = 0;         ///< D, hidden_size
  index_t hidden = 0;         ///< H of one routed expert
  index_t latent = 0;         ///< Nemotron-3 Super: what routed experts read and write in place of D; 0: they have D
  index_t experts = 0;        ///< E of those with weights
  index_t zero_experts = 0;   ///< and as many that return their input
  index_t top_k = 0;          ///< k
  index_t shared_hidden = 0;  ///< H of the shared expert, all of them together, or of the dense branch; 0 without one
  bool renormalize = false;   ///< weights are divided by their sum over the choice
  bool selection_bias = true;  ///< false: a model without the bias that others of its family choose by
  double smallest_sum = 0;    ///< Ernie: moe_norm_min, the least that they are divided by
  double scaling = 1;         ///< and multiplied by this
  group_limit groups{};
  double jitter = 0;                        ///< Phi: eps of the SparseMixer mask
  double clamp = 0;                         ///< GPT-OSS, DeepSeek-V4: swiglu_limit; DeepSeek-V4's may be 0, no limit
  double norm_epsilon = 0;                  ///< Gemma: rms_norm_eps of the norms inside the mixture
  double capacity_factor = 0;               ///< Megatron; 0 means dropless
  index_t capacity = 0;                     ///< Switch: expert_capacity
  bool router_bias = false;                 ///< the gate adds a bias to its logits
  bool softmax_first = true;                ///< Megatron: softmax over all experts before the choice
  index_t layers = 0;                       ///< blocks of the model (Switch: of its encoder)
  index_t next_token_layers = 0;            ///< blocks behind these that predict further tokens; files may lack them
  index_t decoder_layers = 0;               ///< Switch: blocks of its decoder
  std::vector<index_t> moe_layers;          ///< numbers of the blocks that are mixtures, ascending
  std::vector<index_t> decoder_moe_layers;  ///< Switch: those of its decoder
  std::vector<index_t> hash_layers;  ///< DeepSeek-V4: those of moe_layers that look experts up by the token's id
  index_t vocabulary = 0;            ///< and how many ids there are, where such blocks are

  bool looks_experts_up(const block_id& block) const {
    return !block.decoder && std::find(hash_layers.begin(), hash_layers.end(), block.layer) != hash_layers.end();
  }

  friend bool operator==(const model_config&, const model_config&) = default;
};

namespace detail {

/// One spelling under which a family appears; the first of a family is the one that is written.
struct family_spelling {
  model_family family;
  std::string_view model_type;       // empty: only the architecture is spelt differently
  std::string_view architecture;     // empty: the family has none
  std::string_view nest = {};        // the object of its config.json that describes the language model; empty: all
  std::string_view root = "model.";  // what its tensors have in front of "layers."
};

inline constexpr auto family_spellings = std::to_array<family_spelling>({
    {model_family::switch_transformers, "switch_transformers", "SwitchTransformersForConditionalGeneration", "", ""},
    {model_family::mixtral, "mixtral", "MixtralForCausalLM"},
    {model_family::olmoe, "olmoe", "OlmoeForCausalLM"},
    {model_family::qwen2_moe, "qwen2_moe", "Qwen2MoeForCausalLM"},
    {model_family::qwen3_moe, "qwen3_moe", "Qwen3MoeForCausalLM"},
    {model_family::deepseek_v2, "deepseek_v2", "DeepseekV2ForCausalLM"},
    {model_family::deepseek_v2, "deepseek", "DeepseekForCausalLM"},
    {model_family::deepseek_v3, "deepseek_v3", "DeepseekV3ForCausalLM"},
    {model_family::phimoe, "phimoe", "PhiMoEForCausalLM"},
    {model_family::phimoe, "", "PhimoeForCausalLM"},
    {model_family::jetmoe, "jetmoe", "JetMoEForCausalLM"},
    {model_family::jetmoe, "", "JetMoeForCausalLM"},
    {model_family::gpt_oss, "gpt_oss", "GptOssForCausalLM"},
    {model_family::llama4, "llama4", "Llama4ForConditionalGeneration", "text_config", "language_model.model."},
    {model_family::llama4, "llama4_text", "Llama4ForCausalLM"},
    {model_family::megatron, "megatron", "", "", ""},
    {model_family::qwen3_moe, "qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration", "text_config",
     "model.language_model."},
    {model_family::qwen3_moe, "qwen3_vl_moe_text", ""},
    {model_family::qwen3_moe, "qwen3_omni_moe", "Qwen3OmniMoeForConditionalGeneration", "thinker_config.text_config",
     "thinker.model."},
    {model_family::qwen3_moe, "qwen3_omni_moe_text", ""},
    {model_family::qwen3_next, "qwen3_next", "Qwen3NextForCausalLM"},
    {model_family::qwen3_next, "qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", "text_config",
     "model.language_model."},
    {model_family::qwen3_next, "qwen3_5_moe_text", "Qwen3_5MoeForCausalLM"},
    {model_family::olmoe, "flex_olmo", "FlexOlmoForCausalLM"},
    {model_family::deepseek_v3, "deepseek_v32", "DeepseekV32ForCausalLM"},
    {model_family::deepseek_v3, "kimi_k2", ""},
    {model_family::deepseek_v3, "kimi_k25", "KimiK25ForConditionalGeneration", "text_config", "language_model.model."},
    {model_family::deepseek_v3, "kimi_vl", "KimiVLForConditionalGeneration", "text_config", "language_model.model."},
    {model_family::glm4_moe, "glm4_moe", "Glm4MoeForCausalLM"},
    {model_family::glm4_moe, "glm4v_moe", "Glm4vMoeForConditionalGeneration", "text_config", "model.language_model."},
    {model_family::glm4_moe, "glm4v_moe_text", ""},
    {model_family::glm4_moe, "glm4_moe_lite", "Glm4MoeLiteForCausalLM"},
    {model_family::glm4_moe, "glm_moe_dsa", "GlmMoeDsaForCausalLM"},
    {model_family::dots1, "dots1", "Dots1ForCausalLM"},
    {model_family::minimax_m2, "minimax_m2", "MiniMaxM2ForCausalLM"},
    {model_family::lfm2_moe, "lfm2_moe", "Lfm2MoeForCausalLM"},
    {model_family::granitemoe, "granitemoe", "GraniteMoeForCausalLM"},
    {model_family::granitemoe, "granitemoeshared", "GraniteMoeSharedForCausalLM"},
    {model_family::granitemoe, "granitemoehybrid", "GraniteMoeHybridForCausalLM"},
    {model_family::hunyuan_v1_moe, "hunyuan_v1_moe", "HunYuanMoEV1ForCausalLM"},
    {model_family::hunyuan_v1_moe, "hunyuan", ""},
    {model_family::jamba, "jamba", "JambaForCausalLM"},
    {model_family::dbrx, "dbrx", "DbrxForCausalLM", "", "transformer."},
    {model_family::arctic, "arctic", "ArcticForCausalLM"},
    {model_family::nemotron_h, "nemotron_h", "NemotronHForCausalLM", "", "backbone."},
    {model_family::ernie4_5_moe, "ernie4_5_moe", "Ernie4_5_MoeForCausalLM"},
    {model_family::longcat_flash, "longcat_flash", "LongcatFlashForCausalLM"},
    {model_family::deepseek_v4, "deepseek_v4", "DeepseekV4ForCausalLM", "", ""},
    {model_family::gemma4, "gemma4", "Gemma4ForConditionalGeneration", "text_config", "model.language_model."},
    {model_family::gemma4, "gemma4_text", "Gemma4ForCausalLM"},
});

/// How the file of a model spells its family: its model_type, else the family's usual spelling.
constexpr const family_spelling& spelling_of(model_family family, std::string_view model_type) {
  const family_spelling* usual = nullptr;
  for (const family_spelling& spelling : family_spellings) {
    if (!spelling.model_type.empty() && spelling.model_type == model_type) return spelling;
    if (usual == nullptr && spelling.family == family) usual = &spelling;
  }
  return usual == nullptr ? family_spellings.front() : *usual;
}

}  // namespace detail

/// The model_type that the family is known by.
constexpr std::string_view name_of(model_family family) {
  for (const detail::family_spelling& spelling : detail::family_spellings)
    if (spelling.family == family) return spelling.model_type;
  return "unknown family";
}

}  // namespace sluice::inline SLUICE_ISA
