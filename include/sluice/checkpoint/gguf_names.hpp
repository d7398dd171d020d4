/// gguf_names: what GGUF files call the tensors of a mixture.
///
///   blk.  3  .  ffn_up_exps.weight
///
/// One row serves nearly all families, since a layer takes the parameters that it has. The mixture's tensors have
/// "exps", "shexp", "inp", "latent" or "probs" in their names; those of dense layers beside it do not. Others are rows
/// that differ from it: Mixtral's oldest files have a tensor an expert, Gemma 4's mixture includes a dense branch and
/// the norms of both. Names as written by llama.cpp's converters: https://github.com/ggml-org/llama.cpp
#pragma once

#include <sluice/checkpoint/block_names.hpp>
#include <sluice/checkpoint/expert_layout.hpp>
#include <sluice/checkpoint/model_family.hpp>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>

namespace sluice::inline SLUICE_ISA {

namespace detail {

inline constexpr block_names gguf_names{
    .family = {},
    .stack = "blk.",
    .inside = ".",
    .parameters = {gate_weight("ffn_gate_inp.weight"),
                   {"router.gate.bias", "ffn_gate_inp.bias"},
                   selection_bias("exp_probs_b.bias"),
                   hash_table("ffn_gate_tid2eid.weight"),
                   {"shared_gate", "ffn_gate_inp_shexp.weight"},
                   {"experts.into", "ffn_latent_down.weight", tensor_form::matrix},
                   {"experts.out_of", "ffn_latent_up.weight", tensor_form::matrix}},
    .experts = {{{.name = "gguf",
                  .gate = "ffn_gate_exps.weight",
                  .up = "ffn_up_exps.weight",
                  .down = "ffn_down_exps.weight",
                  .up_bias = "ffn_up_exps.bias",
                  .down_bias = "ffn_down_exps.bias",
                  .gate_bias = "ffn_gate_exps.bias",
                  .coded = true},
                 {.name = "gguf-fused",
                  .gate = "ffn_gate_up_exps.weight",
                  .up = "",
                  .down = "ffn_down_exps.weight",
                  .arrangement = arrangement::concatenated,
                  .up_bias = "ffn_gate_up_exps.bias",
                  .down_bias = "ffn_down_exps.bias",
                  .coded = true}}},
    .shared = {{{"", "ffn_gate_shexp.weight", "ffn_up_shexp.weight", "ffn_down_shexp.weight"}}},
    .owned = {"ffn_gate_", "ffn_up_", "ffn_down_", "ffn_latent_", "exp_probs_b"},
    .leading_ones = true};

constexpr block_names gguf_names_of_mixtral() {
  block_names names = gguf_names;
  names.family = model_family::mixtral;
  names.experts[2] = {.name = "gguf-per-expert",
                      .gate = "ffn_gate.{}.weight",
                      .up = "ffn_up.{}.weight",
                      .down = "ffn_down.{}.weight",
                      .coded = true};
  names.owned = {"ffn_gate", "ffn_up", "ffn_down", "exp_probs_b"};
  return names;
}

constexpr block_names gguf_names_of_gemma4() {
  block_names names = gguf_names;
  names.family = model_family::gemma4;
  names.parameters = {gate_weight("ffn_gate_inp.weight"),
                      {"router.gate.norm.gain", "ffn_gate_inp.scale"},
                      {"router.rule.scale", "ffn_down_exps.scale"},
                      {"experts.norm.gain", "pre_ffw_norm_2.weight"},
                      {"norm.gain", "post_ffw_norm_2.weight"},
                      {"other.layer.norm.gain", "ffn_norm.weight"},
                      {"other.norm.gain", "post_ffw_norm_1.weight"},
                      {"other.layer.layer.gate", "ffn_gate.weight", tensor_form::matrix},
                      {"other.layer.layer.up", "ffn_up.weight", tensor_form::matrix},
                      {"other.layer.layer.down", "ffn_down.weight", tensor_form::matrix}};
  names.owned = {"ffn_gate", "ffn_up", "ffn_down", "ffn_norm.", "pre_ffw_norm_2.", "post_ffw_norm_1.",
                 "post_ffw_norm_2."};
  return names;
}

inline constexpr std::array other_gguf_names{gguf_names_of_mixtral(), gguf_names_of_gemma4()};

constexpr const block_names& gguf_names_of(model_family family) {
  for (const block_names& row : other_gguf_names)
    if (row.family == family) return row;
  return gguf_names;
}

/// The tensor whose numbers multiply what a tensor of weights gives, one for all or one an expert: "X.scale" beside
/// "X.weight". Empty if there can be none: of some families it is a parameter of the router.
inline std::string gguf_scale_of(std::string_view weight, model_family family) {
  constexpr std::string_view suffix = ".weight", fused = "ffn_gate_up_exps";
  if (!weight.ends_with(suffix)) return {};
  std::string name(weight.substr(0, weight.size() - suffix.size()));
  if (name.ends_with(fused)) name.replace(name.size() - fused.size(), fused.size(), "ffn_up_exps");
  name += ".scale";
  const auto& parameters = gguf_names_of(family).parameters;
  const bool is_parameter = std::any_of(parameters.begin(), parameters.end(), [&name](const parameter_name& known) {
    return known.tensor.ends_with(".scale") && name.ends_with('.' + std::string(known.tensor));
  });
  return is_parameter ? std::string() : name;
}

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
