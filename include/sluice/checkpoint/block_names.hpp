/// block_names: what the tensors of a mixture are called in each published family, a row a spelling. GGUF files have
/// names of their own (gguf_names.hpp).
///
///   model.  layers.  3  .mlp.  gate.weight
///   root    stack    n  inside tensor
///
/// The first row of a family is how its models were published; later ones are how newer versions of their libraries
/// write them. Roots are shared by all: models of several parts and wrappers of training libraries put their own in
/// front.
#pragma once

#include <sluice/checkpoint/expert_layout.hpp>
#include <sluice/checkpoint/model_family.hpp>

#include <array>
#include <string_view>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// The shape of a tensor that holds a parameter.
enum class tensor_form { matrix, vector, row };  // [rows, cols], [n], [1, n]

struct parameter_name {
  std::string_view parameter;  // as the layer's visit_parameters names it
  std::string_view tensor;
  tensor_form form = tensor_form::vector;
};

struct block_names {
  model_family family;
  std::string_view stack;
  /// The stack of blocks behind the model's own, counted from 0; none: they go on in stack.
  std::string_view behind = {};
  std::string_view inside;
  std::array<parameter_name, 10> parameters;  // the gate's weight first: a block is where that tensor is
  std::array<expert_layout, 4> experts;      // the published one first
  std::array<expert_layout, 2> shared = {};
  bool decoder = false;                        // blocks of the decoder in models that also have an encoder
  std::array<std::string_view, 7> owned = {};  // beginnings of the block's names; none: everything inside is its own
  bool leading_ones = false;  // axes of one element in front of a shape are not counted

  constexpr std::string_view router() const { return parameters.front().tensor; }
};

using arrangement = expert_layout::gate_and_up;

inline constexpr expert_layout per_expert{"per-expert", "experts.{}.gate_proj.weight", "experts.{}.up_proj.weight",
                                          "experts.{}.down_proj.weight"};
inline constexpr expert_layout per_expert_numbered{"per-expert", "experts.{}.w1.weight", "experts.{}.w3.weight",
                                                   "experts.{}.w2.weight"};
inline constexpr expert_layout stacked{"stacked",           "experts.gate_up_proj",   "",
                                       "experts.down_proj", arrangement::concatenated};
inline constexpr expert_layout stacked_transposed{"stacked-transposed",      "experts.gate_up_proj", "",
                                                  "experts.down_proj",       arrangement::concatenated,
                                                  true};
inline constexpr expert_layout stacked_apart{"stacked-apart", "experts.gate_proj", "experts.up_proj",
                                             "experts.down_proj"};
inline constexpr std::array usual_layouts{per_expert, stacked, stacked_apart, stacked_transposed};
inline constexpr std::array numbered_layouts{per_expert_numbered, stacked, stacked_apart, expert_layout{}};

/// gate_proj, up_proj and down_proj of one expert that all tokens pass.
inline constexpr expert_layout shared_expert{"", "shared_expert.gate_proj.weight", "shared_expert.up_proj.weight",
                                             "shared_expert.down_proj.weight"};
inline constexpr expert_layout shared_experts{"", "shared_experts.gate_proj.weight", "shared_experts.up_proj.weight",
                                              "shared_experts.down_proj.weight"};

constexpr parameter_name gate_weight(std::string_view tensor) {
  return {"router.gate.weight", tensor, tensor_form::matrix};
}
constexpr parameter_name selection_bias(std::string_view tensor) { return {"router.rule.bias", tensor}; }
constexpr parameter_name hash_table(std::string_view tensor) {
  return {"router.rule.table", tensor, tensor_form::matrix};
}

inline constexpr auto published_names = std::to_array<block_names>({
    {.family = model_family::switch_transformers,
     .stack = "encoder.block.",
     .inside = ".layer.1.mlp.",
     .parameters = {gate_weight("router.classifier.weight"), {"router.gate.bias", "router.classifier.bias"}},
     .experts = {{{"per-expert", "", "experts.expert_{}.wi.weight", "experts.expert_{}.wo.weight"}}}},
    {.family = model_family::switch_transformers,
     .stack = "decoder.block.",
     .inside = ".layer.2.mlp.",
     .parameters = {gate_weight("router.classifier.weight"), {"router.gate.bias", "router.classifier.bias"}},
     .experts = {{{"per-expert", "", "experts.expert_{}.wi.weight", "experts.expert_{}.wo.weight"}}},
     .decoder = true},

    {.family = model_family::mixtral,
     .stack = "layers.",
     .inside = ".block_sparse_moe.",
     .parameters = {gate_weight("gate.weight")},
     .experts = numbered_layouts},
    {.family = model_family::mixtral,
     .stack = "layers.",
     .inside = ".mlp.",
     .parameters = {gate_weight("gate.weight")},
     .experts = numbered_layouts},

    {.family = model_family::phimoe,
     .stack = "layers.",
     .inside = ".block_sparse_moe.",
     .parameters = {gate_weight("gate.weight")},
     .experts = numbered_layouts},
    {.family = model_family::phimoe,
     .stack = "layers.",
     .inside = ".mlp.",
     .parameters = {gate_weight("router.weight")},
     .experts = numbered_layouts},
    {.family = model_family::phimoe,
     .stack = "layers.",
     .inside = ".mlp.",
     .parameters = {gate_weight("gate.weight")},
     .experts = numbered_layouts},

    {.family = model_family::olmoe,
     .stack = "layers.",
     .inside = ".mlp.",
     .parameters = {gate_weight("gate.weight")},
     .experts = usual_layouts},

    {.family = model_family::qwen3_moe,
     .stack = "layers.",
     .inside = ".mlp.",
     .parameters = {gate_weight("gate.weight")},
     .experts = usual_layouts},

    {.family = model_family::qwen2_moe,
     .stack = "layers.",
     .behind = "mtp.layers.",
     .inside = ".mlp.",
     .parameters = {gate_weight("gate.weight"),
                    {"shared_gate", "shared_expert_gate.weight", tensor_form::matrix}},
     .experts = usual_layouts,
     .shared = {shared_expert}},

    {.family = model_family::deepseek_v2,
     .stack = "layers.",
     .inside = ".mlp.",
     .parameters = {gate_weight("gate.weight")},
     .experts = usual_layouts,
     .shared = {shared_experts}},

    {.family = model_family::deepseek_v3,
     .stack = "layers.",
     .inside = ".mlp.",
     .parameters = {gate_weight("gate.weight"), selection_bias("gate.e_score_correction_bias")},
     .experts = usual_layouts,
     .shared = {shared_experts}},

    {.family = model_family::jetmoe,
     .stack = "layers.",
     .inside = ".mlp.",
     .parameters = {gate_weight("router.layer.weight"), {"bias", "bias"}},
     .experts = {{{"stacked", "input_linear.weight", "", "output_linear.weight", arrangement::concatenated}}}},

    {.family = model_family::gpt_oss,
     .stack = "layers.",
     .inside = ".mlp.",
     .parameters = {gate_weight("router.weight"), {"router.gate.bias", "router.bias"}},
     .experts = {{{"stacked", "experts.gate_up_proj", "", "experts.down_proj", arrangement::interleaved, true,
                   "experts.gate_up_proj_bias", "experts.down_proj_bias"},
                  {.name = "mxfp4",
                   .gate = "experts.gate_up_proj_blocks",
                   .up = "",
                   .down = "experts.down_proj_blocks",
                   .arrangement = arrangement::interleaved,
                   .up_bias = "experts.gate_up_proj_bias",
                   .down_bias = "experts.down_proj_bias",
                   .coded = true}}}},

    {.family = model_family::llama4,
     .stack = "layers.",
     .inside = ".feed_forward.",
     .parameters = {gate_weight("router.weight")},
     .experts = {{{"stacked", "experts.gate_up_proj", "", "experts.down_proj", arrangement::concatenated, true},
                  per_expert}},
     .shared = {shared_expert}},

    {.family = model_family::megatron,
     .stack = "decoder.layers.",
     .inside = ".mlp.",
     .parameters = {gate_weight("router.weight")},
     .experts = {{{"per-expert", "experts.local_experts.{}.linear_fc1.weight", "",
                   "experts.local_experts.{}.linear_fc2.weight", arrangement::concatenated},
                  {"grouped", "experts.linear_fc1.weight{}", "", "experts.linear_fc2.weight{}",
                   arrangement::concatenated}}}},

    {.family = model_family::qwen3_next,
     .stack = "layers.",
     .behind = "mtp.layers.",
     .inside = ".mlp.",
     .parameters = {gate_weight("gate.weight"), {"shared_gate", "shared_expert_gate.weight", tensor_form::matrix}},
     .experts = usual_layouts,
     .shared = {shared_expert}},

    {.family = model_family::glm4_moe,
     .stack = "layers.",
     .inside = ".mlp.",
     .parameters = {gate_weight("gate.weight"), selection_bias("gate.e_score_correction_bias")},
     .experts = usual_layouts,
     .shared = {shared_experts}},

    {.family = model_family::dots1,
     .stack = "layers.",
     .inside = ".mlp.",
     .parameters = {gate_weight("gate.weight"), selection_bias("gate.e_score_correction_bias")},
     .experts = usual_layouts,
     .shared = {shared_experts}},

    {.family = model_family::minimax_m2,
     .stack = "layers.",
     .inside = ".block_sparse_moe.",
     .parameters = {gate_weight("gate.weight"), selection_bias("e_score_correction_bias")},
     .experts = numbered_layouts},
    {.family = model_family::minimax_m2,
     .stack = "layers.",
     .inside = ".mlp.",
     .parameters = {gate_weight("gate.weight"), selection_bias("e_score_correction_bias")},
     .experts = numbered_layouts},

    {.family = model_family::lfm2_moe,
     .stack = "layers.",
     .inside = ".feed_forward.",
     .parameters = {gate_weight("gate.weight"), selection_bias("expert_bias")},
     .experts = numbered_layouts},

    {.family = model_family::granitemoe,
     .stack = "layers.",
     .inside = ".",
     .parameters = {gate_weight("block_sparse_moe.router.layer.weight")},
     .experts = {{{"stacked", "block_sparse_moe.input_linear.weight", "", "block_sparse_moe.output_linear.weight",
                   arrangement::concatenated}}},
     .shared = {{{"", "shared_mlp.input_linear.weight", "", "shared_mlp.output_linear.weight",
                  arrangement::concatenated}}},
     .owned = {"block_sparse_moe.", "shared_mlp."}},

    {.family = model_family::hunyuan_v1_moe,
     .stack = "layers.",
     .inside = ".mlp.",
     .parameters = {gate_weight("gate.wg.weight")},
     .experts = usual_layouts,
     .shared = {{{"", "shared_mlp.gate_proj.weight", "shared_mlp.up_proj.weight", "shared_mlp.down_proj.weight"}}}},

    {.family = model_family::jamba,
     .stack = "layers.",
     .inside = ".feed_forward.",
     .parameters = {gate_weight("router.weight")},
     .experts = usual_layouts},

    {.family = model_family::dbrx,
     .stack = "blocks.",
     .inside = ".ffn.",
     .parameters = {gate_weight("router.layer.weight")},
     .experts = {{{.name = "flat",
                   .gate = "experts.mlp.w1",
                   .up = "experts.mlp.v1",
                   .down = "experts.mlp.w2",
                   .down_transposed = true,
                   .flat = true}}}},

    {.family = model_family::arctic,
     .stack = "layers.",
     .inside = ".block_sparse_moe.",
     .parameters = {gate_weight("gate.weight")},
     .experts = numbered_layouts},

    {.family = model_family::nemotron_h,
     .stack = "layers.",
     .behind = "mtp.layers.",
     .inside = ".mixer.",
     .parameters = {gate_weight("gate.weight"), selection_bias("gate.e_score_correction_bias"),
                    {"experts.into", "fc1_latent_proj.weight", tensor_form::matrix},
                    {"experts.out_of", "fc2_latent_proj.weight", tensor_form::matrix}},
     .experts = {{{"per-expert", "", "experts.{}.up_proj.weight", "experts.{}.down_proj.weight"},
                  {"stacked", "", "experts.up_proj", "experts.down_proj"}}},
     .shared = {{{"", "", "shared_experts.up_proj.weight", "shared_experts.down_proj.weight"}}}},

    {.family = model_family::ernie4_5_moe,
     .stack = "layers.",
     .inside = ".mlp.",
     .parameters = {gate_weight("gate.weight"),
                    {"router.rule.bias", "moe_statics.e_score_correction_bias", tensor_form::row}},
     .experts = usual_layouts,
     .shared = {shared_experts}},

    {.family = model_family::longcat_flash,
     .stack = "layers.",
     .inside = ".mlp.",
     .parameters = {gate_weight("router.classifier.weight"), selection_bias("router.e_score_correction_bias")},
     .experts = usual_layouts},

    {.family = model_family::deepseek_v4,
     .stack = "layers.",
     .behind = "mtp.",
     .inside = ".ffn.",
     .parameters = {gate_weight("gate.weight"), selection_bias("gate.bias"), hash_table("gate.tid2eid")},
     .experts = numbered_layouts,
     .shared = {{{"", "shared_experts.w1.weight", "shared_experts.w3.weight", "shared_experts.w2.weight"}}}},
    {.family = model_family::deepseek_v4,
     .stack = "layers.",
     .behind = "mtp.",
     .inside = ".mlp.",
     .parameters = {gate_weight("gate.weight"), selection_bias("gate.e_score_correction_bias"),
                    hash_table("gate.tid2eid")},
     .experts = usual_layouts,
     .shared = {shared_experts}},

    {.family = model_family::gemma4,
     .stack = "layers.",
     .inside = ".",
     .parameters = {gate_weight("router.proj.weight"),
                    {"router.gate.norm.gain", "router.scale"},
                    {"router.rule.scale", "router.per_expert_scale"},
                    {"experts.norm.gain", "pre_feedforward_layernorm_2.weight"},
                    {"norm.gain", "post_feedforward_layernorm_2.weight"},
                    {"other.layer.norm.gain", "pre_feedforward_layernorm.weight"},
                    {"other.norm.gain", "post_feedforward_layernorm_1.weight"},
                    {"other.layer.layer.gate", "mlp.gate_proj.weight", tensor_form::matrix},
                    {"other.layer.layer.up", "mlp.up_proj.weight", tensor_form::matrix},
                    {"other.layer.layer.down", "mlp.down_proj.weight", tensor_form::matrix}},
     .experts = {stacked, stacked_apart, per_expert},
     .owned = {"router.", "experts.", "mlp.", "pre_feedforward_layernorm.", "pre_feedforward_layernorm_2.",
               "post_feedforward_layernorm_1.", "post_feedforward_layernorm_2."}},
});

/// What else may stand in front of a stack, besides the root of the model's own spelling.
inline constexpr std::array<std::string_view, 10> known_roots{
    "model.",          "",           "model.language_model.", "language_model.model.", "language_model.",
    "language.model.", "llm.model.", "thinker.model.",        "transformer.",          "backbone."};

/// What wrappers of training libraries put in front of everything.
inline constexpr std::array<std::string_view, 6> known_wrappers{
    "", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "base_model.model."};

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
