/// What families have in common when their keys are read: which blocks are mixtures, groups, shared experts.
#pragma once

#include <sluice/checkpoint/config_keys.hpp>
#include <sluice/checkpoint/json_object.hpp>
#include <sluice/checkpoint/model_family.hpp>

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

/// The width of a shared expert: 0 and null say that there is none.
inline index_t shared_width(const json_object& json, json_key key) {
  if (json.says_null(key)) return 0;
  return json.integer(key, {0, widths.most});
}

/// Blocks whose kind is `word` in a list of the kinds of all blocks, which is what `key` holds.
inline std::vector<index_t> blocks_of_kind(const json_object& json, const char* key,
                                           const std::vector<std::string>& kinds, index_t layers, const char* word) {
  if (static_cast<index_t>(kinds.size()) != layers)
    json.refuse(key, "is for " + std::to_string(kinds.size()) + " of " + std::to_string(layers) + " blocks");
  return blocks_where(layers, [&](index_t i) { return kinds[static_cast<std::size_t>(i)] == word; });
}

/// Blocks behind the model's own, where each prediction of a further token takes several.
inline index_t next_token_blocks(const json_object& json, const char* key, index_t predictions, index_t blocks_each) {
  if (predictions * blocks_each > layer_counts.most)
    json.refuse(key, std::to_string(predictions) + " predictions of " + std::to_string(blocks_each) +
                         " blocks each are more than " + std::to_string(layer_counts.most) + " blocks");
  return predictions * blocks_each;
}

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
