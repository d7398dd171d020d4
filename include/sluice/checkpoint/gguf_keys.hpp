/// gguf_keys: checked access to the keys of a GGUF file, and which architectures are families that sluice knows.
#pragma once

#include <sluice/checkpoint/config_keys.hpp>
#include <sluice/checkpoint/model_family.hpp>
#include <sluice/io/file_error.hpp>
#include <sluice/io/gguf_reader.hpp>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace sluice::inline SLUICE_ISA {

namespace detail {

enum class weights_rule { divided, raw, told };  // by their sum; as they are; by expert_weights_norm
/// How files say that experts are scored.
enum class gguf_scores : index_t { softmax = 1, sigmoid = 2, sqrt_softplus = 4 };

struct gguf_architecture {
  std::string_view name;
  model_family family;
  std::string_view model_type;
  weights_rule weights;
  gguf_scores scores = gguf_scores::softmax;  // where the file does not say
  bool either_score = false;                  // files say it, and softmax is another family
};

inline constexpr auto gguf_architectures = std::to_array<gguf_architecture>({
    {"llama", model_family::mixtral, "mixtral", weights_rule::divided},
    {"llama4", model_family::llama4, "llama4_text", weights_rule::raw, gguf_scores::sigmoid},
    {"qwen2moe", model_family::qwen2_moe, "qwen2_moe", weights_rule::raw},
    {"qwen3moe", model_family::qwen3_moe, "qwen3_moe", weights_rule::divided},
    {"qwen3vlmoe", model_family::qwen3_moe, "qwen3_vl_moe_text", weights_rule::divided},
    {"qwen3next", model_family::qwen3_next, "qwen3_next", weights_rule::divided},
    {"qwen35moe", model_family::qwen3_next, "qwen3_5_moe_text", weights_rule::divided},
    {"olmoe", model_family::olmoe, "olmoe", weights_rule::raw},
    {"deepseek", model_family::deepseek_v2, "deepseek", weights_rule::raw},
    {"deepseek2", model_family::deepseek_v3, "deepseek_v3", weights_rule::told, gguf_scores::softmax, true},
    {"deepseek2-ocr", model_family::deepseek_v3, "deepseek_v3", weights_rule::told, gguf_scores::softmax, true},
    {"deepseek32", model_family::deepseek_v3, "deepseek_v32", weights_rule::told, gguf_scores::sigmoid},
    {"deepseek4", model_family::deepseek_v4, "deepseek_v4", weights_rule::divided, gguf_scores::sqrt_softplus},
    {"glm4moe", model_family::glm4_moe, "glm4_moe", weights_rule::told, gguf_scores::sigmoid},
    {"glm-dsa", model_family::glm4_moe, "glm_moe_dsa", weights_rule::told, gguf_scores::sigmoid},
    {"dots1", model_family::dots1, "dots1", weights_rule::told, gguf_scores::sigmoid},
    {"minimax-m2", model_family::minimax_m2, "minimax_m2", weights_rule::divided, gguf_scores::sigmoid},
    {"lfm2moe", model_family::lfm2_moe, "lfm2_moe", weights_rule::divided, gguf_scores::sigmoid},
    {"gpt-oss", model_family::gpt_oss, "gpt_oss", weights_rule::divided},
    {"phimoe", model_family::phimoe, "phimoe", weights_rule::raw},
    {"granitemoe", model_family::granitemoe, "granitemoe", weights_rule::divided},
    {"granitehybrid", model_family::granitemoe, "granitemoehybrid", weights_rule::divided},
    {"hunyuan-moe", model_family::hunyuan_v1_moe, "hunyuan_v1_moe", weights_rule::divided},
    {"ernie4_5-moe", model_family::ernie4_5_moe, "ernie4_5_moe", weights_rule::divided},
    {"jamba", model_family::jamba, "jamba", weights_rule::raw},
    {"dbrx", model_family::dbrx, "dbrx", weights_rule::divided},
    {"arctic", model_family::arctic, "arctic", weights_rule::divided},
    {"nemotron_h_moe", model_family::nemotron_h, "nemotron_h", weights_rule::told, gguf_scores::sigmoid},
    {"gemma4", model_family::gemma4, "gemma4_text", weights_rule::divided},
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

  /// One number, or an array that holds it for every block: 0 for those that have nothing of the kind.
  std::optional<index_t> integer_if_given(std::string_view key, integer_range range) const {
    const gguf_value* const value = find(key);
    if (value == nullptr) return std::nullopt;
    std::optional<index_t> common;
    value->for_each([&](const gguf_value& each) {
      const std::optional<std::int64_t> number = each.integer();
      if (number == 0 && value->type() == gguf_type::array) return;
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
  /// One number, or an array that holds it for every block.
  std::optional<double> number_if_given(std::string_view key, double least, double most) const {
    const gguf_value* const value = find(key);
    if (value == nullptr) return std::nullopt;
    std::optional<double> common;
    value->for_each([&](const gguf_value& each) {
      const std::optional<double> number = each.number();
      if (!number || !(*number >= least && *number <= most))
        refuse(key, "must be a number from " + short_text(least) + " to " + short_text(most) + ", is " +
                        (number ? short_text(*number) : "a " + each.type_text()));
      if (common.value_or(*number) < *number || common.value_or(*number) > *number)
        refuse(key, "differs from block to block, " + short_text(*common) + " and " + short_text(*number) +
                        ", which is not supported");
      common = number;
    });
    return common;
  }
  double number(std::string_view key, double least, double most) const {
    const std::optional<double> value = number_if_given(key, least, most);
    if (!value) refuse(key, "is missing");
    return *value;
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

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
