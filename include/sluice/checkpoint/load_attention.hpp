/// load_attention: the attention of a published block, filled from its tensors as load_layer fills the mixture.
///
///   const checkpoint_model model("jetmoe-8b");
///   const auto attention = load_attention<jetmoe_attention<float>>(model, {.layer = 3});
///   const auto mixture = load_layer<jetmoe_layer<float>>(model, {.layer = 3});
///
///   model.layers.3.self_attention.experts.router.layer.weight [E,D]         experts.input_linear.weight [E,W,D]
///                                .kv_proj.weight [2W,D], keys first         experts.output_linear.weight [E,D,W]
///                                                                           experts.bias [D]
///
/// Of published mixtures JetMoE alone has experts there (arXiv:2404.07413): W = heads of keys × width of a head, which
/// the config calls num_key_value_heads and kv_channels, and rotary positions on whole heads of base rope_theta. As
/// strict as load_layer (checkpoint/load_layer.hpp): everything under self_attention is taken, with its shape, or one
/// file_error lists what is wrong. Storages and options are load_layer's.
#pragma once

#include <sluice/attention/routed_query_attention.hpp>
#include <sluice/checkpoint/json_object.hpp>
#include <sluice/checkpoint/load_layer.hpp>
#include <sluice/io/mapped_file.hpp>

#include <charconv>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// What the tensors of JetMoE's attention are called in a model, behind the root that the block's mixture has there.
class attention_names {
public:
  attention_names(const checkpoint_model& model, const block_id& block, const routed_query_options& o)
      : extent_{model.config().experts, o.key_heads * o.head_width, model.config().inputs} {
    prefix_ = model.names(block).root() + "layers." + std::to_string(block.layer) + ".self_attention.";
  }

  const expert_extent& extent() const noexcept { return extent_; }
  std::string router() const { return prefix_ + "experts.router.layer.weight"; }
  bool owns(std::string_view tensor) const { return tensor.starts_with(prefix_); }

  /// The place of the parameter [rows, cols] of that name; nothing if there is no such tensor.
  std::optional<tensor_place> place_of(std::string_view parameter, index_t rows, index_t cols) const {
    const auto [experts, width, inputs] = extent_;
    if (parameter == "router.gate.weight") return tensor_place{router(), {experts, inputs}, 0, inputs, 1};
    if (parameter == "output_bias") return tensor_place{prefix_ + "experts.bias", {inputs}, 0, 1, 1};
    if (parameter == "key" || parameter == "value")
      return tensor_place{
          prefix_ + "kv_proj.weight", {2 * width, inputs}, parameter == "key" ? 0 : width * inputs, inputs, 1};
    for (const bool is_query : {true, false}) {
      const std::string_view bank = is_query ? "query." : "output.";
      if (!parameter.starts_with(bank)) continue;
      const std::string_view number = parameter.substr(bank.size());
      index_t e = 0;
      std::from_chars(number.data(), number.data() + number.size(), e);
      return tensor_place{prefix_ + (is_query ? "experts.input_linear.weight" : "experts.output_linear.weight"),
                          is_query ? std::vector<std::int64_t>{experts, width, inputs}
                                   : std::vector<std::int64_t>{experts, inputs, width},
                          e * rows * cols, cols, 1};
    }
    return std::nullopt;
  }

private:
  expert_extent extent_;
  std::string prefix_;
};

}  // namespace detail

/// What the config.json of a JetMoE model says about attention; `path` is that file or the folder that holds it. Throws
/// file_error.
inline routed_query_options read_jetmoe_attention(const std::filesystem::path& path) {
  std::error_code ignored;
  const std::filesystem::path file = std::filesystem::is_directory(path, ignored) ? path / "config.json" : path;
  const std::string name = file.string();
  const mapped_file bytes(file);
  const detail::json_value document = detail::parse_json(
      std::string_view(reinterpret_cast<const char*>(bytes.bytes().data()), bytes.bytes().size()), name);
  const detail::json_object config(document, name);
  constexpr detail::integer_range counts{1, index_t{1} << 16};
  const index_t width = config.integer({"kv_channels"}, counts, 128);
  if (width % 2 != 0) config.refuse("kv_channels", "must be even, is " + std::to_string(width));
  return {.key_heads = config.integer({"num_key_value_heads"}, counts, 16),
          .head_width = width,
          .output_bias = true,
          .rotary = {.width = width, .base = config.number_if_given({"rope_theta"}, 0, 1e12).value_or(10000)}};
}

/// A JetMoE attention of the block, filled: Attention is a jetmoe_attention. Throws file_error.
template <typename Attention>
Attention load_attention(const checkpoint_model& model, const block_id& block, const routed_query_options& heads,
                         const layer_load_options& options = {}) {
  const model_config& config = model.config();
  if (config.family != model_family::jetmoe)
    throw file_error(model.name(),
                     "has no experts in its attention: it is of the family " + std::string(name_of(config.family)));
  if (block.decoder || block.layer < 0 || block.layer >= config.layers)
    throw file_error(model.name(), "has no attention of " + to_string(block) + "; its layers are 0 to " +
                                       std::to_string(config.layers - 1));
  using scalar = typename Attention::scalar;
  Attention attention(
      top_k_router<scalar>(config.inputs, config.experts,
                           {.top_k = config.top_k, .weights = weighting::post, .constant_weight = true}),
      heads);
  detail::load_named(attention, model, "attention of " + to_string(block), detail::attention_names(model, block, heads),
                     options);
  return attention;
}
/// The same with heads as the model's config.json says.
template <typename Attention>
Attention load_attention(const checkpoint_model& model, const block_id& block, const layer_load_options& options = {}) {
  const std::filesystem::path path = model.name();
  std::error_code ignored;
  const auto folder = std::filesystem::is_directory(path, ignored) ? path : path.parent_path();
  return load_attention<Attention>(model, block, read_jetmoe_attention(folder / "config.json"), options);
}

}  // namespace sluice::inline SLUICE_ISA
