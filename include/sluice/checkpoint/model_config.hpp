/// model_config: what a published model's config.json says of its mixture-of-experts layers, checked.
///
///   const sluice::model_config config = sluice::read_model_config("OLMoE-1B-7B/config.json");
///
/// The family decides how a block routes and what its tensors are called; the numbers decide its size. Keys that a family
/// does not need are ignored; a key that is missing where the family's own code has no default, has the wrong type or makes
/// no sense is a file_error that names it.
#pragma once

#include <sluice/core/types.hpp>
#include <sluice/io/file_error.hpp>
#include <sluice/router/group_limit.hpp>

#include <nlohmann/json.hpp>

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
  deepseek_v2,
  deepseek_v3,
  phimoe,
  jetmoe,
  gpt_oss,
  llama4,
  megatron
};

struct model_config {
  model_family family{};
  std::string model_type;  ///< as the file has it
  index_t inputs = 0;      ///< D, hidden_size
  index_t hidden = 0;      ///< H of one routed expert
  index_t experts = 0;     ///< E
  index_t top_k = 0;       ///< k
  index_t shared_hidden = 0;  ///< H of the shared expert, all of them together; 0 without one
  bool renormalize = false;   ///< weights are divided by their sum over the choice
  double scaling = 1;         ///< and multiplied by this
  group_limit groups{};
  double jitter = 0;          ///< Phi: eps of the SparseMixer mask
  double clamp = 0;           ///< GPT-OSS: swiglu_limit
  double capacity_factor = 0; ///< Megatron; 0 means dropless
  index_t capacity = 0;       ///< Switch: expert_capacity
  bool router_bias = false;
  bool softmax_first = true;  ///< Megatron: softmax over all experts before the choice
  index_t layers = 0;                ///< blocks of the model (Switch: of its encoder)
  index_t decoder_layers = 0;        ///< Switch: blocks of its decoder
  std::vector<index_t> moe_layers;   ///< numbers of the blocks that are mixtures, ascending
  std::vector<index_t> decoder_moe_layers;  ///< Switch: those of its decoder
};

}  // namespace sluice::inline SLUICE_ISA
