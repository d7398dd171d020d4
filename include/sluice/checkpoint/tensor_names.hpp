/// tensor_names: which tensor of a published model holds which parameter of a layer.
///
///   tensor_names names(config, {.layer = 3}, [&](const std::string& tensor) { return file.contains(tensor); });
///   names.place_of("experts.5.gate", H, D)  ->  "model.layers.3.mlp.experts.5.gate_proj.weight", [H,D], ...
///
/// Models of one family are published with different prefixes and layouts (per expert by the first releases, stacked by
/// later ones); which one it is, is seen from the names that exist. Parameters are named as the layer's visit_parameters
/// names them, whatever wrappers there are around the mixture ("layer.").
#pragma once

#include <sluice/checkpoint/expert_layout.hpp>
#include <sluice/checkpoint/model_config.hpp>
#include <sluice/core/error.hpp>

#include <array>
#include <charconv>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// One mixture of a model: the number of its block, in the decoder of models that also have an encoder.
struct block_id {
  index_t layer = 0;
  bool decoder = false;

  friend bool operator==(const block_id&, const block_id&) = default;
};

inline std::string to_string(const block_id& block) {
  return (block.decoder ? "decoder." : "layers.") + std::to_string(block.layer);
}

namespace detail {

using arrangement = expert_layout::gate_and_up;

/// What the tensors of a family are called below the name of the block.
struct family_names {
  std::string_view router;
  std::string_view router_bias = {};
  std::string_view selection_bias = {};
  std::string_view shared = {};  ///< prefix of gate_proj, up_proj, down_proj
  std::string_view shared_gate = {};
  std::string_view output_bias = {};
  std::vector<expert_layout> experts;  ///< the published one first
};

inline family_names names_of(model_family family) {
  const expert_layout apart{"per-expert", "experts.{}.gate_proj.weight", "experts.{}.up_proj.weight",
                            "experts.{}.down_proj.weight"};
  const expert_layout stacked{"stacked", "experts.gate_up_proj", "", "experts.down_proj", arrangement::concatenated};
  const expert_layout stacked_apart{"stacked-apart", "experts.gate_proj", "experts.up_proj", "experts.down_proj"};
  switch (family) {
    case model_family::switch_transformers:
      return {.router = "router.classifier.weight",
              .router_bias = "router.classifier.bias",
              .experts = {{"per-expert", "", "experts.expert_{}.wi.weight", "experts.expert_{}.wo.weight"}}};
    case model_family::mixtral:
    case model_family::phimoe:
      return {.router = "gate.weight",
              .experts = {{"per-expert", "experts.{}.w1.weight", "experts.{}.w3.weight", "experts.{}.w2.weight"},
                          stacked,
                          stacked_apart}};
    case model_family::olmoe:
    case model_family::qwen3_moe:
      return {.router = "gate.weight", .experts = {apart, stacked, stacked_apart}};
    case model_family::qwen2_moe:
      return {.router = "gate.weight",
              .shared = "shared_expert.",
              .shared_gate = "shared_expert_gate.weight",
              .experts = {apart, stacked, stacked_apart}};
    case model_family::deepseek_v2:
      return {.router = "gate.weight", .shared = "shared_experts.", .experts = {apart, stacked, stacked_apart}};
    case model_family::deepseek_v3:
      return {.router = "gate.weight",
              .selection_bias = "gate.e_score_correction_bias",
              .shared = "shared_experts.",
              .experts = {apart, stacked, stacked_apart}};
    case model_family::jetmoe:
      return {.router = "router.layer.weight",
              .output_bias = "bias",
              .experts = {{"stacked", "input_linear.weight", "", "output_linear.weight", arrangement::concatenated}}};
    case model_family::gpt_oss:
      return {.router = "router.weight",
              .router_bias = "router.bias",
              .experts = {{"stacked", "experts.gate_up_proj", "", "experts.down_proj", arrangement::interleaved, true,
                           "experts.gate_up_proj_bias", "experts.down_proj_bias"}}};
    case model_family::llama4:
      return {.router = "router.weight",
              .shared = "shared_expert.",
              .experts = {{"stacked", "experts.gate_up_proj", "", "experts.down_proj", arrangement::concatenated, true},
                          apart}};
    case model_family::megatron:
      return {.router = "router.weight",
              .experts = {{"per-expert", "experts.local_experts.{}.linear_fc1.weight", "",
                           "experts.local_experts.{}.linear_fc2.weight", arrangement::concatenated},
                          {"grouped", "experts.linear_fc1.weight{}", "", "experts.linear_fc2.weight{}",
                           arrangement::concatenated}}};
  }
  return {};
}

/// Names of a block, with a dot at their end; the usual one first.
inline std::vector<std::string> block_prefixes(model_family family, const block_id& block) {
  const std::string n = std::to_string(block.layer);
  const auto each = [&n](std::initializer_list<std::string_view> roots, std::string_view mlp) {
    std::vector<std::string> prefixes;
    for (const std::string_view root : roots) prefixes.push_back(std::string(root) + n + std::string(mlp));
    return prefixes;
  };
  switch (family) {
    case model_family::switch_transformers:
      return block.decoder ? each({"decoder.block."}, ".layer.2.mlp.") : each({"encoder.block."}, ".layer.1.mlp.");
    case model_family::mixtral:
    case model_family::phimoe: {
      auto prefixes = each({"model.layers.", "layers."}, ".block_sparse_moe.");
      for (const std::string& newer : each({"model.layers.", "layers."}, ".mlp.")) prefixes.push_back(newer);
      return prefixes;
    }
    case model_family::llama4:
      return each({"language_model.model.layers.", "model.language_model.layers.", "model.layers.", "layers."},
                  ".feed_forward.");
    case model_family::megatron:
      return each({"decoder.layers.", "model.decoder.layers.", "module.decoder.layers."}, ".mlp.");
    default:
      return each({"model.layers.", "layers."}, ".mlp.");
  }
}

}  // namespace detail

class tensor_names {
public:
  /// The names that `exists` finds; where nothing is found, the family's usual ones, so that a later search can name what
  /// it misses.
  template <typename Exists>
  tensor_names(const model_config& config, const block_id& block, Exists&& exists) : tensor_names(config, block) {
    const auto prefixes = detail::block_prefixes(config.family, block);
    for (const std::string& candidate : prefixes)
      if (exists(candidate + std::string(names_.router))) {
        prefix_ = candidate;
        break;
      }
    for (const expert_layout& candidate : names_.experts)
      if (exists(candidate.place(prefix_, 0, "up", extent_).tensor)) {
        experts_ = candidate;
        break;
      }
  }

  /// The names of the family's first release.
  tensor_names(const model_config& config, const block_id& block)
      : names_(detail::names_of(config.family)),
        prefix_(detail::block_prefixes(config.family, block).front()),
        extent_{config.experts, config.hidden, config.inputs},
        experts_(names_.experts.front()) {}

  /// The same block in another layout of its family. Throws std::invalid_argument if it has none of that name.
  tensor_names in_layout(std::string_view layout) const {
    for (const expert_layout& candidate : names_.experts)
      if (candidate.name == layout) {
        tensor_names other = *this;
        other.experts_ = candidate;
        return other;
      }
    std::string known;
    for (const expert_layout& candidate : names_.experts) known += ' ' + std::string(candidate.name);
    throw_invalid("the family has no layout called ", layout, "; it has", known);
  }

  const expert_extent& extent() const noexcept { return extent_; }
  /// Begins the name of every tensor of the block, and of no other.
  const std::string& prefix() const noexcept { return prefix_; }
  const expert_layout& layout() const noexcept { return experts_; }

  /// The place of the parameter [rows, cols] of that name; nothing if the family has no such tensor.
  std::optional<tensor_place> place_of(std::string_view parameter, index_t rows, index_t cols) const {
    while (parameter.starts_with("layer.")) parameter.remove_prefix(6);
    if (parameter.starts_with("experts.")) {
      parameter.remove_prefix(8);
      const auto dot = parameter.find('.');
      index_t e = 0;
      std::from_chars(parameter.data(), parameter.data() + dot, e);
      return experts_.place(prefix_, e, parameter.substr(dot + 1), extent_);
    }
    if (parameter == "router.gate.weight") return matrix(names_.router, rows, cols);
    if (parameter == "router.gate.bias") return vector(names_.router_bias, rows * cols);
    if (parameter == "router.rule.bias") return vector(names_.selection_bias, rows * cols);
    if (parameter == "bias") return vector(names_.output_bias, rows * cols);
    if (parameter == "shared_gate") return matrix(names_.shared_gate, rows, cols);
    if (parameter.starts_with("shared.") && !names_.shared.empty())
      return matrix(std::string(names_.shared) + std::string(parameter.substr(7)) + "_proj.weight", rows, cols);
    return std::nullopt;
  }

private:
  std::optional<tensor_place> matrix(std::string_view name, index_t rows, index_t cols) const {
    if (name.empty()) return std::nullopt;
    return tensor_place{prefix_ + std::string(name), {rows, cols}, 0, cols, 1};
  }
  std::optional<tensor_place> vector(std::string_view name, index_t size) const {
    if (name.empty()) return std::nullopt;
    return tensor_place{prefix_ + std::string(name), {size}, 0, 1, 1};
  }

  detail::family_names names_;
  std::string prefix_;
  expert_extent extent_;
  expert_layout experts_;
};

}  // namespace sluice::inline SLUICE_ISA
