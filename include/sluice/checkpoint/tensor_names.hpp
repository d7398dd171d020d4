/// tensor_names: which tensor of a published model holds which parameter of a layer.
///
///   tensor_names names(config, {.layer = 3}, [&](const std::string& name) { return its shape, or nullptr; });
///   names.place_of("experts.5.gate", H, D)  ->  "model.layers.3.mlp.experts.5.gate_proj.weight", [H,D], ...
///
/// Models of one family are published with different prefixes, names and layouts (per expert by the first releases,
/// stacked by later ones); which one it is, is seen from the names and shapes that exist: the first that fits of
/// block_names.hpp. Parameters are named as the layer's visit_parameters names them, whatever wrappers there are
/// around the mixture ("layer."). A block behind the model's own, config.layers or higher, is one that predicts
/// further tokens.
#pragma once

#include <sluice/checkpoint/block_names.hpp>
#include <sluice/checkpoint/expert_layout.hpp>
#include <sluice/checkpoint/gguf_names.hpp>
#include <sluice/checkpoint/model_config.hpp>
#include <sluice/core/error.hpp>

#include <charconv>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// The rows that speak of such a block of a family, the usual one first, that of GGUF files last.
inline std::vector<const block_names*> rows_of(const model_config& config, const block_id& block) {
  std::vector<const block_names*> rows;
  for (const block_names& row : published_names)
    if (row.family == config.family && row.decoder == block.decoder) rows.push_back(&row);
  if (!block.decoder) rows.push_back(&gguf_names_of(config.family));
  return rows;
}

/// "layers.3.mlp."
inline std::string path_of(const block_names& row, const model_config& config, const block_id& block) {
  const bool is_behind = !row.behind.empty() && block.layer >= config.layers;
  const std::string_view stack = is_behind ? row.behind : row.stack;
  return std::string(stack) + std::to_string(is_behind ? block.layer - config.layers : block.layer) +
         std::string(row.inside);
}

/// Everything that may stand in front of a stack, the usual first.
inline std::vector<std::string> roots_of(const model_config& config, std::string_view given) {
  if (!given.empty()) return {std::string(given)};
  const std::string_view own = spelling_of(config.family, config.model_type).root;
  std::vector<std::string> roots;
  for (const std::string_view wrapper : known_wrappers) {
    roots.push_back(std::string(wrapper) + std::string(own));
    for (const std::string_view root : known_roots)
      if (root != own) roots.push_back(std::string(wrapper) + std::string(root));
  }
  return roots;
}

}  // namespace detail

class tensor_names {
public:
  /// The names that are there: shape_of(name) points to the shape of that tensor, or is nullptr. Where nothing is
  /// found, the family's usual ones, so that a later search can name what it misses. A prefix that is given stands in
  /// front of "layers." in place of those that are known.
  template <typename ShapeOf>
  tensor_names(const model_config& config, const block_id& block, ShapeOf&& shape_of, std::string_view prefix = {})
      : tensor_names(config, block, prefix) {
    for (const std::string& root : detail::roots_of(config, prefix)) {
      for (const detail::block_names* const row : detail::rows_of(config, block))
        if (const std::string candidate = root + detail::path_of(*row, config, block);
            shape_of(candidate + std::string(row->router())) != nullptr) {
          choose(*row, root, candidate);
          exists_ = true;
          break;
        }
      if (exists_) break;
    }
    experts_ = fitting(row_->experts, extent_, shape_of);
    shared_ = fitting(row_->shared, {0, 0, inputs_}, shape_of);
  }

  /// The names of the family's first release.
  tensor_names(const model_config& config, const block_id& block, std::string_view prefix = {})
      : extent_{config.experts, config.hidden, config.latent > 0 ? config.latent : config.inputs},
        inputs_(config.inputs) {
    for (const detail::block_names* const row : detail::rows_of(config, block))
      router_paths_.push_back(detail::path_of(*row, config, block) + std::string(row->router()));
    const detail::block_names& row = *detail::rows_of(config, block).front();
    const std::string root = detail::roots_of(config, prefix).front();
    choose(row, root, root + detail::path_of(row, config, block));
  }

  /// The same block in another layout of its family. Throws std::invalid_argument if it has none of that name.
  tensor_names in_layout(std::string_view layout) const {
    std::string known;
    for (const expert_layout& candidate : row_->experts) {
      if (candidate.name.empty() || candidate.coded) continue;
      if (candidate.name == layout) {
        tensor_names other = *this;
        other.experts_ = candidate;
        return other;
      }
      known += ' ' + std::string(candidate.name);
    }
    throw_invalid("the family has no layout called ", layout, "; it has", known);
  }

  /// Whether the block's router was found under these names.
  bool exists() const noexcept { return exists_; }
  const expert_extent& extent() const noexcept { return extent_; }
  /// Begins the name of every tensor of the block.
  const std::string& prefix() const noexcept { return prefix_; }
  /// What stands in front of "layers." or what the family has in its place.
  const std::string& root() const noexcept { return root_; }
  const expert_layout& layout() const noexcept { return experts_; }
  /// The tensor of the gate's weights: where it is, there the block is.
  std::string router() const { return prefix_ + std::string(row_->router()); }

  /// What stands in front of the stack in the name of this block's router; empty if that tensor is another one.
  std::string prefix_in(std::string_view tensor) const {
    for (const std::string& path : router_paths_)
      if (tensor.size() > path.size() && tensor.ends_with(path) && tensor[tensor.size() - path.size() - 1] == '.')
        return std::string(tensor.substr(0, tensor.size() - path.size()));
    return {};
  }

  /// Whether a tensor of that name belongs to the block.
  bool owns(std::string_view tensor) const {
    if (!tensor.starts_with(prefix_)) return false;
    if (row_->owned.front().empty()) return true;
    const std::string_view rest = tensor.substr(prefix_.size());
    for (const std::string_view beginning : row_->owned)
      if (!beginning.empty() && rest.starts_with(beginning)) return true;
    return false;
  }

  /// The place of the parameter [rows, cols] of that name; nothing if the family has no such tensor.
  std::optional<tensor_place> place_of(std::string_view parameter, index_t rows, index_t cols) const {
    std::optional<tensor_place> place = named_place(parameter, rows, cols);
    if (place) place->leading_ones = row_->leading_ones;
    return place;
  }

private:
  std::optional<tensor_place> named_place(std::string_view parameter, index_t rows, index_t cols) const {
    while (parameter.starts_with("layer.")) parameter.remove_prefix(6);
    for (const detail::parameter_name& known : row_->parameters)
      if (known.parameter == parameter && !known.tensor.empty()) return place_of(known, rows, cols);
    if (parameter.starts_with("experts.")) {
      parameter.remove_prefix(8);
      const auto dot = parameter.rfind('.');
      // In a union of banks the experts with weights are the first: "0.5.gate" is theirs.
      if (parameter.find('.') != dot) return named_place("experts." + std::string(parameter.substr(2)), rows, cols);
      index_t e = 0;
      std::from_chars(parameter.data(), parameter.data() + dot, e);
      return experts_.place(prefix_, e, parameter.substr(dot + 1), extent_);
    }
    if (parameter.starts_with("shared.") && !shared_.down.empty()) {
      parameter.remove_prefix(7);
      const index_t hidden = parameter.starts_with("down") ? cols : rows;
      return shared_.place(prefix_, 0, parameter, {0, hidden, inputs_});
    }
    return std::nullopt;
  }

  void choose(const detail::block_names& row, std::string root, std::string prefix) {
    row_ = &row;
    root_ = std::move(root);
    prefix_ = std::move(prefix);
    experts_ = row.experts.front();
    shared_ = row.shared.front();
  }

  /// The first layout whose tensors are there with the shapes of the model, else the first whose names are there.
  template <typename ShapeOf>
  expert_layout fitting(std::span<const expert_layout> layouts, const expert_extent& size, ShapeOf&& shape_of) const {
    const expert_layout* named = nullptr;
    for (const expert_layout& candidate : layouts) {
      if (candidate.down.empty()) continue;
      bool fits = true, is_there = true;
      for (const std::string_view part : {"up", "down"}) {
        tensor_place place = candidate.place(prefix_, 0, part, size);
        place.leading_ones = row_->leading_ones;
        const auto* const shape = shape_of(place.tensor);
        is_there = is_there && shape != nullptr;
        fits = fits && shape != nullptr && place.is_of(*shape);
      }
      if (fits) return candidate;
      if (is_there && named == nullptr) named = &candidate;
    }
    return named == nullptr ? layouts.front() : *named;
  }

  tensor_place place_of(const detail::parameter_name& known, index_t rows, index_t cols) const {
    const std::string tensor = prefix_ + std::string(known.tensor);
    if (known.form == detail::tensor_form::matrix) return {tensor, {rows, cols}, 0, cols, 1};
    if (known.form == detail::tensor_form::row) return {tensor, {1, rows * cols}, 0, 1, 1};
    return {tensor, {rows * cols}, 0, 1, 1};
  }

  const detail::block_names* row_ = nullptr;
  std::string root_;
  std::string prefix_;
  expert_extent extent_;
  index_t inputs_;  // of the layer
  expert_layout experts_;
  expert_layout shared_;
  std::vector<std::string> router_paths_;  // of all rows, without a root
  bool exists_ = false;
};

}  // namespace sluice::inline SLUICE_ISA
