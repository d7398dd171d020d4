/// read_model_config: what a published model's config.json says of its mixture-of-experts layers, checked.
///
///   const sluice::model_config config = sluice::read_model_config("OLMoE-1B-7B");   // the folder, or its config.json
///
/// model_type names the family; where it is unknown (a derivative under a name of its own), architectures[0] does. A
/// model of several parts has the language model in an object of its own ("text_config", "language_config",
/// "llm_config", "thinker_config"); that one is read, and the names around it count where its own are unknown.
/// config_families.hpp says what a family's keys mean; keys that it does not need are ignored. A file_error that names
/// the key and the numbers is thrown for a key that is missing where the family's own code has no default, has the
/// wrong type, makes no sense, or asks for what sluice does not do (another activation, another way to score).
/// Quantised weights are no error here: `quantization` names them, `encoding` says what the file tells of their layout.
///
/// to_json writes a config in the keys of its family, so that parse_model_config(to_json(c), name) == c.
#pragma once

#include <sluice/checkpoint/config_families.hpp>
#include <sluice/checkpoint/config_writer.hpp>
#include <sluice/checkpoint/json_object.hpp>
#include <sluice/checkpoint/model_family.hpp>
#include <sluice/core/error.hpp>
#include <sluice/io/file_error.hpp>
#include <sluice/io/mapped_file.hpp>

#include <nlohmann/json.hpp>

#include <array>
#include <filesystem>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

inline std::optional<std::string> first_architecture(const json_object& json) {
  const json_value* const list = json.value_if_given({"architectures"});
  if (list == nullptr) return std::nullopt;
  if (!list->is_array() || list->elements().empty() || !list->elements().front().is_string())
    json.refuse("architectures", "must be an array that begins with a string");
  return list->elements().front().text();
}

[[noreturn]] inline void refuse_family(const json_object& json, const std::optional<std::string>& type,
                                       const std::optional<std::string>& architecture) {
  std::string message;
  if (!type && !architecture) message = "has neither \"model_type\" nor \"architectures\"";
  if (type) message = "model_type \"" + printable(*type) + "\"";
  if (architecture) message += std::string(type ? " of " : "") + "architecture \"" + printable(*architecture) + "\"";
  if (type || architecture) message += " is of no known family";
  message += "; known model types are";
  const char* separator = " ";
  for (const family_spelling& known : family_spellings) {
    if (known.model_type != name_of(known.family)) continue;  // one a family is enough to read
    message += separator + std::string(known.model_type);
    separator = ", ";
  }
  throw file_error(json.file(), message);
}

/// The keys under which models of several parts keep what describes the language model.
inline constexpr std::array language_model_keys{"thinker_config", "text_config", "language_config", "llm_config",
                                                "language_model_config"};

/// The objects that describe the language model, each inside the one before it.
inline std::vector<json_object> language_models(const json_object& outermost) {
  std::vector<json_object> levels{outermost};
  for (bool found = true; found;) {
    found = false;
    for (const char* const key : language_model_keys)
      if (const json_value* const value = levels.back().value_if_given({key}); value != nullptr && value->is_object()) {
        levels.push_back(levels.back().object({key}));
        found = true;
        break;
      }
  }
  return levels;
}

/// What the names in an object say; nullptr if they are unknown or absent.
inline const family_spelling* spelling_in(const json_object& json) {
  const std::optional<std::string> type = json.text_if_given({"model_type"});
  if (type && !type->empty())
    for (const family_spelling& known : family_spellings)
      if (known.model_type == *type) return &known;
  const std::optional<std::string> architecture = first_architecture(json);
  if (architecture && !architecture->empty())
    for (const family_spelling& known : family_spellings)
      if (known.architecture == *architecture) return &known;
  return nullptr;
}

/// DeepSeek-VL2 names its language models DeepSeek-V2; the largest routes as DeepSeek-V3 does.
inline model_family routed_as(const json_object& json, model_family named) {
  return named == model_family::deepseek_v2 && json.text_if_given({"topk_method"}) == "noaux_tc" &&
                 json.text_if_given({"scoring_func"}) == "sigmoid"
             ? model_family::deepseek_v3
             : named;
}

/// The innermost name that is known tells the family, the outermost of that family how the file spells it.
inline const family_spelling& family_of(const std::vector<json_object>& levels) {
  const family_spelling* inner = nullptr;
  for (auto level = levels.rbegin(); level != levels.rend() && inner == nullptr; ++level) inner = spelling_in(*level);
  if (inner == nullptr)
    refuse_family(levels.front(), levels.front().text_if_given({"model_type"}), first_architecture(levels.front()));
  for (const json_object& level : levels)
    if (const family_spelling* const outer = spelling_in(level); outer != nullptr && outer->family == inner->family)
      return *outer;
  return *inner;
}

/// A whole number under one of the keys; 0 if there is none, whatever else there is.
inline index_t told_number(const json_value& object, std::initializer_list<const char*> keys) {
  for (const char* const key : keys)
    if (const json_value* const value = object.find(key); value != nullptr && value->is_within(-1, widths.most))
      return value->integer();
  return 0;
}

/// What quantization_config says of the layout of weights, as far as it is understood: whoever decodes them decides.
/// Bits that compressed-tensors' groups do not share are not told, and neither is a group size that they do not share.
inline weight_encoding encoding_of(const json_value& told) {
  weight_encoding how;
  for (const char* const key : {"checkpoint_format", "version", "format"})
    if (const json_value* const text = told.find(key); text != nullptr && text->is_string() && how.format.empty())
      how.format = text->text();
  how.bits = told_number(told, {"bits", "w_bit"});
  how.group = told_number(told, {"group_size", "q_group_size"});
  if (const json_value* const tile = told.find("weight_block_size");
      tile != nullptr && tile->is_array() && tile->elements().size() == 2)
    for (index_t* const side : {&how.tile_rows, &how.tile_inputs})
      if (const json_value& length = tile->elements()[side == &how.tile_rows ? 0 : 1]; length.is_within(1, widths.most))
        *side = length.integer();
  const json_value* const groups = told.find("config_groups");
  if (groups == nullptr || !groups->is_object()) return how;
  std::optional<weight_encoding> common;
  for (const json_value& group : groups->elements()) {
    const json_value* const weights = group.is_object() ? group.find("weights") : nullptr;
    if (weights == nullptr || !weights->is_object()) continue;
    weight_encoding each = how;
    each.bits = told_number(*weights, {"num_bits"});
    each.group = told_number(*weights, {"group_size"});
    if (each.group == 0) each.group = -1;  // a scale a row
    if (!common) common = each;
    if (common->bits != each.bits) common->bits = 0;
    if (common->group != each.group) common->group = 0;
  }
  return common.value_or(how);
}

inline void read_quantization(const json_object& json, model_config& config) {
  const auto found = json.object_if_given({"quantization_config"});
  if (!found) return;
  const std::string method = found->text_if_given({"quant_method"}).value_or("");
  config.quantization = method.empty() ? "unnamed" : method;
  config.encoding = encoding_of(*json.value_if_given({"quantization_config"}));
}

}  // namespace detail

/// Throws file_error; `file` is the name in its messages.
inline model_config parse_model_config(std::string_view json, const std::string& file) {
  const detail::json_value document = detail::parse_json(json, file);
  const std::vector<detail::json_object> levels =
      detail::language_models(detail::json_object(document, file));
  const detail::family_spelling& family = detail::family_of(levels);
  if (!family.nest.empty() && levels.size() == 1)
    levels.front().refuse(family.nest, "is missing, and with it what describes the language model");
  model_config config;
  config.family = family.family;
  config.model_type = family.model_type.empty() ? name_of(family.family) : family.model_type;
  for (const detail::json_object& level : levels)
    if (config.quantization.empty()) detail::read_quantization(level, config);
  const detail::json_object& inner = levels.back();
  config.family = detail::routed_as(inner, config.family);
  detail::read_config(inner, config);
  return config;
}

/// `path` is a config.json or the folder that holds one. Throws file_error.
inline model_config read_model_config(const std::filesystem::path& path) {
  std::error_code ignored;
  const std::filesystem::path file = std::filesystem::is_directory(path, ignored) ? path / "config.json" : path;
  const mapped_file bytes(file);
  const std::string_view text(reinterpret_cast<const char*>(bytes.bytes().data()), bytes.bytes().size());
  return parse_model_config(text, file.string());
}

/// Throws std::invalid_argument if a file of this family cannot say what the config says. An empty model_type is
/// written as the family's name.
inline std::string to_json(const model_config& config) {
  model_config named = config;
  if (named.model_type.empty()) named.model_type = std::string(name_of(named.family));
  if (named.layers < 1 || named.layers > detail::layer_counts.most)
    throw_invalid("a model of ", named.layers, " layers has no config.json");
  const std::string text = detail::config_json(named).dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
  std::string difference = "its family has no keys for some of its values";
  try {
    if (parse_model_config(text, "to_json") == named) return text;
  } catch (const file_error& error) {
    difference = error.what();
  }
  throw_invalid("this ", std::string(name_of(named.family)), " config has no config.json: ", difference);
}

}  // namespace sluice::inline SLUICE_ISA
