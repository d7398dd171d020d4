/// read_gguf_config: what the keys of a GGUF file say of its mixture-of-experts layers, checked.
///
///   general.architecture          tells the family                    ARCH.embedding_length         D
///   ARCH.expert_count             E                                   ARCH.expert_used_count        k
///   ARCH.expert_feed_forward_length   H; where a family has none: ARCH.feed_forward_length
///   ARCH.block_count              blocks, those that predict further tokens (ARCH.nextn_predict_layers) among them
///   ARCH.expert_weights_norm, expert_weights_scale   divided by their sum, multiplied by this
///   ARCH.expert_gating_func       1: softmax, 2: sigmoid              ARCH.expert_group_count, expert_group_used_count
///
/// What keys do not say, tensors do: which blocks are mixtures, how wide a shared expert is, whether there is a
/// selection bias. Files may be older than a key; then what a family always does holds, and groups of experts are not
/// limited. A file_error names the key for one that is missing, has the wrong type, makes no sense, or asks for what
/// sluice does not do. Keys as written by llama.cpp's converters: https://github.com/ggml-org/llama.cpp
#pragma once

#include <sluice/checkpoint/config_keys.hpp>
#include <sluice/checkpoint/family_forms.hpp>
#include <sluice/checkpoint/model_family.hpp>
#include <sluice/io/file_error.hpp>
#include <sluice/io/gguf_reader.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

enum class weights_rule { divided, raw, told };  // by their sum; as they are; by expert_weights_norm

struct gguf_architecture {
  std::string_view name;
  model_family family;
  std::string_view model_type;
  weights_rule weights;
  bool sigmoid = false;       // how experts are scored where the file does not say
  bool either_score = false;  // files say it, and softmax is another family
};

inline constexpr auto gguf_architectures = std::to_array<gguf_architecture>({
    {"llama", model_family::mixtral, "mixtral", weights_rule::divided},
    {"qwen2moe", model_family::qwen2_moe, "qwen2_moe", weights_rule::raw},
    {"qwen3moe", model_family::qwen3_moe, "qwen3_moe", weights_rule::divided},
    {"qwen3vlmoe", model_family::qwen3_moe, "qwen3_vl_moe_text", weights_rule::divided},
    {"qwen3next", model_family::qwen3_next, "qwen3_next", weights_rule::divided},
    {"qwen35moe", model_family::qwen3_next, "qwen3_5_moe_text", weights_rule::divided},
    {"olmoe", model_family::olmoe, "olmoe", weights_rule::raw},
    {"deepseek", model_family::deepseek_v2, "deepseek", weights_rule::raw},
    {"deepseek2", model_family::deepseek_v3, "deepseek_v3", weights_rule::told, false, true},
    {"deepseek32", model_family::deepseek_v3, "deepseek_v32", weights_rule::told, true},
    {"glm4moe", model_family::glm4_moe, "glm4_moe", weights_rule::told, true},
    {"glm-dsa", model_family::glm4_moe, "glm_moe_dsa", weights_rule::told, true},
    {"dots1", model_family::dots1, "dots1", weights_rule::told, true},
    {"minimax-m2", model_family::minimax_m2, "minimax_m2", weights_rule::divided, true},
    {"lfm2moe", model_family::lfm2_moe, "lfm2_moe", weights_rule::divided, true},
    {"gpt-oss", model_family::gpt_oss, "gpt_oss", weights_rule::divided},
    {"phimoe", model_family::phimoe, "phimoe", weights_rule::raw},
    {"granitemoe", model_family::granitemoe, "granitemoe", weights_rule::divided},
    {"hunyuan-moe", model_family::hunyuan_v1_moe, "hunyuan_v1_moe", weights_rule::divided},
    {"ernie4_5-moe", model_family::ernie4_5_moe, "ernie4_5_moe", weights_rule::divided},
    {"jamba", model_family::jamba, "jamba", weights_rule::raw},
});

/// Checked access to the keys of one architecture.
class gguf_keys {
public:
  gguf_keys(const gguf_reader& file, std::string_view architecture) : file_(file), prefix_(architecture) {
    prefix_ += '.';
  }

  [[noreturn]] void refuse(std::string_view key, const std::string& reason) const {
    throw file_error(file_.file_name(), "key \"" + prefix_ + std::string(key) + "\": " + reason);
  }

  /// One number, or an array that holds it for every block.
  std::optional<index_t> integer_if_given(std::string_view key, integer_range range) const {
    const gguf_value* const value = find(key);
    if (value == nullptr) return std::nullopt;
    std::optional<index_t> common;
    value->for_each([&](const gguf_value& each) {
      const std::optional<std::int64_t> number = each.integer();
      if (!number || *number < range.least || *number > range.most)
        refuse(key, "must be an integer from " + std::to_string(range.least) + " to " + std::to_string(range.most) +
                        ", is " + (number ? std::to_string(*number) : "a " + each.type_text()));
      if (common && *common != *number)
        refuse(key, "differs from block to block, " + std::to_string(*common) + " and " + std::to_string(*number) +
                        ", which is not supported");
      common = *number;
    });
    return common;
  }
  index_t integer(std::string_view key, integer_range range) const {
    const std::optional<index_t> value = integer_if_given(key, range);
    if (!value) refuse(key, "is missing");
    return *value;
  }
  std::optional<double> number_if_given(std::string_view key, double least, double most) const {
    const gguf_value* const value = find(key);
    if (value == nullptr) return std::nullopt;
    const std::optional<double> number = value->number();
    if (!number || !(*number >= least && *number <= most))
      refuse(key, "must be a number from " + short_text(least) + " to " + short_text(most) + ", is " +
                      (number ? short_text(*number) : "a " + value->type_text()));
    return number;
  }
  std::optional<bool> boolean_if_given(std::string_view key) const {
    const gguf_value* const value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->boolean()) refuse(key, "must be true or false, is a " + value->type_text());
    return value->boolean();
  }

private:
  const gguf_value* find(std::string_view key) const { return file_.find_key(prefix_ + std::string(key)); }

  const gguf_reader& file_;
  std::string prefix_;
};

inline const gguf_architecture& architecture_of(const gguf_reader& file) {
  const gguf_value* const value = file.find_key("general.architecture");
  const auto name = value == nullptr ? std::nullopt : value->text();
  if (!name) throw file_error(file.file_name(), "key \"general.architecture\": must be a string");
  std::string known;
  for (const gguf_architecture& row : gguf_architectures) {
    if (row.name == *name) return row;
    known += (known.empty() ? "" : ", ") + std::string(row.name);
  }
  throw file_error(file.file_name(),
                   "architecture \"" + printable(*name) + "\" is of no known family; known are " + known);
}

/// What the tensors of all files say.
struct gguf_blocks {
  std::vector<index_t> mixtures;
  index_t shared_hidden = 0;
  bool selection_bias = false;
};

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
    if (const tensor_info* const shared = find(i, ".ffn_up_shexp.weight");
        shared != nullptr && shared->shape.size() == 2)
      out.shared_hidden = shared->shape.front();
    if (find(i, ".exp_probs_b.bias") != nullptr) out.selection_bias = true;
  }
  return out;
}

/// Which way experts are scored, and by that which of two families it is.
inline void read_scores(const gguf_keys& keys, const gguf_architecture& row, model_config& config) {
  const index_t usual = row.sigmoid ? 2 : 1;
  const index_t scores = keys.integer_if_given("expert_gating_func", {0, 1000}).value_or(0);
  const index_t told = scores == 0 ? usual : scores;
  if (row.either_score && told == 1) {
    config.family = model_family::deepseek_v2;
    config.model_type = "deepseek_v2";
  } else if (told != (row.either_score ? 2 : usual)) {
    keys.refuse("expert_gating_func",
                "only " + std::to_string(usual) + " is supported for this architecture, not " + std::to_string(told));
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
  const auto own_width = keys.integer_if_given("expert_feed_forward_length", {0, detail::widths.most});
  config.hidden = own_width.value_or(0) > 0 ? *own_width : keys.integer("feed_forward_length", detail::widths);

  const index_t blocks = keys.integer("block_count", detail::layer_counts);
  config.next_token_layers = keys.integer_if_given("nextn_predict_layers", {0, blocks - 1}).value_or(0);
  config.layers = blocks - config.next_token_layers;
  const detail::gguf_blocks seen = detail::blocks_in(files, config.layers);
  config.moe_layers = seen.mixtures;
  config.shared_hidden = seen.shared_hidden;
  if (config.moe_layers.empty())
    throw file_error(file.file_name(),
                     "none of its " + std::to_string(config.layers) + " blocks is a mixture of experts");

  detail::read_scores(keys, row, config);
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
    default:
      break;
  }
  return config;
}

}  // namespace sluice::inline SLUICE_ISA
