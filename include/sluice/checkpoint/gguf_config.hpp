/// read_gguf_config: what the keys of a GGUF file say of its mixture-of-experts layers, checked.
///
///   general.architecture          tells the family                    ARCH.embedding_length         D
///   ARCH.expert_count             E                                   ARCH.expert_used_count        k
///   ARCH.expert_feed_forward_length   H; where there is none: as wide as ffn_down_exps, else ARCH.feed_forward_length
///   ARCH.block_count              blocks, those that predict further tokens (ARCH.nextn_predict_layers) among them
///   ARCH.expert_weights_norm, expert_weights_scale   divided by their sum, multiplied by this
///   ARCH.expert_gating_func   1: softmax, 2: sigmoid, 4: square root of softplus
///   ARCH.expert_group_count, expert_group_used_count                  ARCH.moe_latent_size      what experts read
///   ARCH.hash_layer_count         blocks that look experts up         ARCH.swiglu_clamp_exp     for every block
///
/// What keys do not say, tensors do: which blocks are mixtures, how wide a shared expert is, whether there is a
/// selection bias. Files may be older than a key; then what a family always does holds, and groups of experts are not
/// limited. A file_error names the key for one that is missing, has the wrong type, makes no sense, or asks for what
/// sluice does not do. Keys as written by llama.cpp's converters: https://github.com/ggml-org/llama.cpp
#pragma once

#include <sluice/checkpoint/config_keys.hpp>
#include <sluice/checkpoint/family_forms.hpp>
#include <sluice/checkpoint/gguf_keys.hpp>
#include <sluice/checkpoint/model_family.hpp>
#include <sluice/io/file_error.hpp>
#include <sluice/io/gguf_reader.hpp>

#include <algorithm>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// What the tensors of all files say.
struct gguf_blocks {
  std::vector<index_t> mixtures;
  index_t hidden = 0;
  index_t shared_hidden = 0;
  bool selection_bias = false;
};

/// How many of the last blocks predict further tokens. Some files count blocks that they leave out.
template <typename Files>
index_t next_token_blocks_in(const Files& files, index_t blocks, index_t told) {
  if (told == 0) return 0;
  const std::string block = "blk." + std::to_string(blocks - told) + '.';
  bool is_there = false, predicts = false;
  for (const gguf_reader& file : files)
    for (const tensor_info& tensor : file.tensors()) {
      is_there = is_there || tensor.name.starts_with(block);
      predicts = predicts || tensor.name.starts_with(block + "nextn.");
    }
  return is_there && !predicts ? 0 : told;
}

template <typename Files>
gguf_blocks blocks_in(const Files& files, index_t blocks) {
  gguf_blocks out;
  const auto find = [&](index_t block, const char* name) -> const tensor_info* {
    const std::string full = "blk." + std::to_string(block) + name;
    for (const gguf_reader& file : files)
      if (const tensor_info* const tensor = file.find(full); tensor != nullptr) return tensor;
    return nullptr;
  };
  for (index_t i = 0; i < blocks; ++i) {
    if (find(i, ".ffn_gate_inp.weight") == nullptr) continue;
    out.mixtures.push_back(i);
    const auto set_width = [&](index_t& width, const char* name, bool is_first) {
      const tensor_info* const tensor = find(i, name);
      if (tensor == nullptr || tensor->shape.size() < 2) return;
      const std::int64_t extent = is_first ? tensor->shape.front() : tensor->shape.back();
      if (extent <= widths.most) width = extent;
    };
    set_width(out.hidden, ".ffn_down_exps.weight", false);
    set_width(out.shared_hidden, ".ffn_up_shexp.weight", true);
    if (find(i, ".exp_probs_b.bias") != nullptr) out.selection_bias = true;
  }
  return out;
}

/// Which way experts are scored, and by that which of two families it is.
inline void read_scores(const gguf_keys& keys, const gguf_architecture& row, bool selection_bias,
                        model_config& config) {
  constexpr auto softmax = static_cast<index_t>(gguf_scores::softmax);
  constexpr auto sigmoid = static_cast<index_t>(gguf_scores::sigmoid);
  index_t told = keys.integer_if_given("expert_gating_func", {0, 1000}).value_or(0);
  // Files of either kind may be older than the key; a softmax never had a bias beside it.
  if (told == 0) told = row.either_score && selection_bias ? sigmoid : static_cast<index_t>(row.scores);
  if (row.either_score && told == softmax) {
    config.family = model_family::deepseek_v2;
    config.model_type = "deepseek_v2";
  } else if (const index_t wanted = row.either_score ? sigmoid : static_cast<index_t>(row.scores); told != wanted) {
    keys.refuse("expert_gating_func",
                "only " + std::to_string(wanted) + " is supported for this architecture, not " + std::to_string(told));
  }
}

/// What the keys of one family say besides.
inline void read_further(const gguf_keys& keys, model_config& config) {
  switch (config.family) {
    case model_family::gpt_oss:
      config.router_bias = true;
      config.clamp = 7;
      break;
    case model_family::phimoe:
      config.jitter = 0.01;
      break;
    case model_family::ernie4_5_moe:
      config.smallest_sum = 1e-12;
      break;
    case model_family::nemotron_h:
      config.latent = keys.integer_if_given("moe_latent_size", widths).value_or(0);
      break;
    case model_family::gemma4:
      config.shared_hidden = keys.integer("feed_forward_length", widths);
      config.norm_epsilon = keys.number("attention.layer_norm_rms_epsilon", 0, 1);
      break;
    case model_family::deepseek_v4: {
      config.selection_bias = true;  // of blocks that look nothing up
      config.clamp = keys.number("swiglu_clamp_exp", 0, largest_factor);
      const double of_shared = keys.number_if_given("swiglu_clamp_shexp", 0, largest_factor).value_or(config.clamp);
      if (of_shared < config.clamp || of_shared > config.clamp)
        keys.refuse("swiglu_clamp_shexp", "is " + short_text(of_shared) + " beside a swiglu_clamp_exp of " +
                                              short_text(config.clamp) + "; only equal ones are supported");
      const index_t looked_up = keys.integer_if_given("hash_layer_count", {0, layer_counts.most}).value_or(0);
      std::copy_if(config.moe_layers.begin(), config.moe_layers.end(), std::back_inserter(config.hash_layers),
                   [looked_up](index_t i) { return i < looked_up; });
      if (!config.hash_layers.empty()) config.vocabulary = keys.integer("vocab_size", widths);
      break;
    }
    default:
      break;
  }
}

}  // namespace detail

/// Of one file, or of all that it was split into, the one with the keys first. Throws file_error.
inline model_config read_gguf_config(const std::vector<gguf_reader>& files) {
  const gguf_reader& file = files.front();
  const detail::gguf_architecture& row = detail::architecture_of(file);
  const detail::gguf_keys keys(file, row.name);
  model_config config;
  config.family = row.family;
  config.model_type = std::string(row.model_type);
  config.quantization = "gguf";
  config.inputs = keys.integer("embedding_length", detail::widths);
  config.experts = keys.integer("expert_count", detail::expert_counts);
  config.top_k = keys.integer("expert_used_count", detail::expert_counts);
  if (config.top_k > config.experts)
    keys.refuse("expert_used_count",
                std::to_string(config.top_k) + " of " + std::to_string(config.experts) + " experts cannot be chosen");
  const index_t blocks = keys.integer("block_count", detail::layer_counts);
  config.next_token_layers = detail::next_token_blocks_in(
      files, blocks, keys.integer_if_given("nextn_predict_layers", {0, blocks - 1}).value_or(0));
  config.layers = blocks - config.next_token_layers;
  const detail::gguf_blocks seen = detail::blocks_in(files, blocks);
  std::copy_if(seen.mixtures.begin(), seen.mixtures.end(), std::back_inserter(config.moe_layers),
               [&config](index_t i) { return i < config.layers; });
  if (seen.mixtures.empty())
    throw file_error(file.file_name(), "none of its " + std::to_string(blocks) + " blocks is a mixture of experts");
  config.shared_hidden = seen.shared_hidden;
  config.hidden = keys.integer_if_given("expert_feed_forward_length", {0, detail::widths.most}).value_or(0);
  if (config.hidden == 0) config.hidden = seen.hidden;
  if (config.hidden == 0) config.hidden = keys.integer("feed_forward_length", detail::widths);

  detail::read_scores(keys, row, seen.selection_bias, config);
  const detail::family_form& form = detail::form_of(config.family);
  config.selection_bias = !form.selection_bias || seen.selection_bias;
  config.renormalize = row.weights == detail::weights_rule::divided;
  if (const auto told = keys.boolean_if_given("expert_weights_norm"); told) {
    if (row.weights != detail::weights_rule::told && *told != config.renormalize)
      keys.refuse("expert_weights_norm", "differs from what models of this family do");
    config.renormalize = *told;
  }
  const double scale = keys.number_if_given("expert_weights_scale", 0, detail::largest_factor).value_or(0.0);
  if (scale > 0) config.scaling = scale;
  config.groups.groups = keys.integer_if_given("expert_group_count", {0, config.experts}).value_or(1);
  config.groups.kept = keys.integer_if_given("expert_group_used_count", {0, config.experts}).value_or(1);
  config.groups.groups = (std::max)(config.groups.groups, index_t{1});
  config.groups.kept = (std::max)(config.groups.kept, index_t{1});
  if (form.scores == expert_scores::sigmoid && form.selection_bias && form.shared != detail::shared_form::none)
    config.groups.score = group_limit::group_score::sum_of_two;  // DeepSeek-V3 and those that route as it does
  try {
    config.groups.validate(config.experts, config.top_k);
  } catch (const std::invalid_argument& error) {
    keys.refuse("expert_group_used_count", error.what());
  }

  detail::read_further(keys, config);
  return config;
}

}  // namespace sluice::inline SLUICE_ISA
