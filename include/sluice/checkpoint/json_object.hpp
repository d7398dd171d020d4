/// parse_json, json_object: a JSON file that is not trusted, and checked access to what it says.
///
///   const nlohmann::json document = detail::parse_json(text, file);
///   const detail::json_object config(document, file);
///   config.integer({"num_experts", "num_local_experts"}, {1, 64});   // two spellings of one key
///
/// Refused with a file_error that names the file, the key and the numbers: more than 16 MB; text that is not JSON in
/// UTF-8; nesting deeper than 32; keys given twice; values of another type than asked for, out of range or fractional;
/// spellings of one key that disagree. The functions with `if_given` take null for an absent key, as the classes that
/// write these files do; elsewhere null is a value of the wrong type.
#pragma once

#include <sluice/core/types.hpp>
#include <sluice/io/file_error.hpp>

#include <nlohmann/json.hpp>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

inline constexpr std::size_t longest_json = std::size_t{16} << 20U;
inline constexpr int deepest_json = 32;

inline nlohmann::json parse_json(std::string_view text, const std::string& file) {
  if (text.size() > longest_json)
    throw file_error(file, "its " + std::to_string(text.size()) + " bytes exceed the limit of " +
                               std::to_string(longest_json) + " for JSON");
  // The JSON parser takes a NUL for the end of its input: what comes after it would be hidden from every check.
  if (const std::size_t nul = text.find('\0'); nul != std::string_view::npos)
    throw file_error(file, "has a NUL at its byte " + std::to_string(nul));

  std::vector<std::set<std::string>> open;  // keys seen so far of every object that is not closed yet
  using event = nlohmann::json::parse_event_t;
  const auto watch = [&](int depth, event what, nlohmann::json& value) {
    if ((what == event::object_start || what == event::array_start) && depth >= deepest_json)
      throw file_error(file, "is nested deeper than " + std::to_string(deepest_json));
    if (what == event::object_start) open.emplace_back();
    if (what == event::object_end) open.pop_back();
    if (what == event::key && !open.back().insert(value.get<std::string>()).second)
      throw file_error(file, "key \"" + printable(value.get<std::string>()) + "\" is given twice");
    return true;
  };
  try {
    return nlohmann::json::parse(text.begin(), text.end(), watch);
  } catch (const nlohmann::json::exception& error) {
    throw file_error(file, "is not valid JSON: " + printable(error.what(), 300));
  }
}

/// One key, and another spelling of it if there is one.
struct json_key {
  const char* name;
  const char* alias = nullptr;
};

struct integer_range {
  index_t least;
  index_t most;
};

/// Refers to the document and to the file's name, which must outlive it. `path` leads to this object: "text_config."
class json_object {
public:
  json_object(const nlohmann::json& value, const std::string& file, std::string path = {})
      : value_(&value), file_(&file), path_(std::move(path)) {
    if (!value.is_object())
      throw file_error(file, (path_.empty() ? std::string() : "key \"" + path_.substr(0, path_.size() - 1) + "\": ") +
                                 "must be a JSON object, is " + shown(value));
  }

  const std::string& file() const { return *file_; }

  [[noreturn]] void refuse(std::string_view key, const std::string& reason) const {
    throw file_error(*file_, "key \"" + path_ + printable(key) + "\": " + reason);
  }

  std::optional<index_t> integer_if_given(json_key key, integer_range range) const {
    const auto [name, value] = find(key, true);
    if (value == nullptr) return std::nullopt;
    return integer_of(name, *value, range);
  }

  index_t integer(json_key key, integer_range range) const {
    const auto [name, value] = find(key, false);
    if (value == nullptr)
      refuse(key.name,
             key.alias == nullptr ? "is missing" : std::string("is missing, and so is \"") + key.alias + "\"");
    return integer_of(name, *value, range);
  }

  index_t integer(json_key key, integer_range range, index_t otherwise) const {
    const auto [name, value] = find(key, false);
    return value == nullptr ? otherwise : integer_of(name, *value, range);
  }

  std::optional<std::vector<index_t>> integers_if_given(json_key key, integer_range range) const {
    const auto [name, value] = find(key, true);
    if (value == nullptr) return std::nullopt;
    if (!value->is_array()) refuse(name, "must be an array of integers, is " + shown(*value));
    std::vector<index_t> out;
    out.reserve(value->size());
    for (const nlohmann::json& element : *value) out.push_back(integer_of(name, element, range));
    return out;
  }

  bool boolean(json_key key, bool otherwise) const {
    const auto [name, value] = find(key, false);
    if (value == nullptr) return otherwise;
    if (!value->is_boolean()) refuse(name, "must be true or false, is " + shown(*value));
    return value->get<bool>();
  }

  /// A number above `above` and up to `most`.
  std::optional<double> number_if_given(json_key key, double above, double most) const {
    const auto [name, value] = find(key, true);
    if (value == nullptr) return std::nullopt;
    if (!value->is_number()) refuse(name, "must be a number, is " + shown(*value));
    const auto number = value->get<double>();
    if (!(number > above && number <= most))
      refuse(name, "must be above " + nlohmann::json(above).dump() + " and at most " + nlohmann::json(most).dump() +
                       ", is " + shown(*value));
    return number;
  }

  std::optional<std::string> text_if_given(json_key key) const {
    const auto [name, value] = find(key, true);
    if (value == nullptr) return std::nullopt;
    if (!value->is_string()) refuse(name, "must be a string, is " + shown(*value));
    return value->get<std::string>();
  }

  /// Refuses the file if the key is there and holds anything but `only`.
  void expect_text(json_key key, std::string_view only) const {
    const auto [name, value] = find(key, false);
    if (value != nullptr && !(value->is_string() && value->get_ref<const std::string&>() == only))
      refuse(name, "only \"" + std::string(only) + "\" is supported, not " + shown(*value));
  }

  void expect_boolean(json_key key, bool only) const {
    if (boolean(key, only) != only)
      refuse(key.name,
             std::string("only ") + (only ? "true" : "false") + " is supported, not " + (only ? "false" : "true"));
  }

  const nlohmann::json* value_if_given(json_key key) const { return find(key, true).second; }

  std::optional<json_object> object_if_given(json_key key) const {
    const auto [name, value] = find(key, true);
    if (value == nullptr) return std::nullopt;
    return json_object(*value, *file_, path_ + std::string(name) + ".");
  }

  json_object object(json_key key) const {
    auto found = object_if_given(key);
    if (!found) refuse(key.name, "is missing");
    return *std::move(found);
  }

private:
  /// The spelling that is there and its value; nullptr if there is none, or only null where that means absent.
  std::pair<std::string_view, const nlohmann::json*> find(json_key key, bool null_is_absent) const {
    const auto lookup = [&](const char* name) -> const nlohmann::json* {
      if (name == nullptr) return nullptr;
      const auto place = value_->find(name);
      return place == value_->end() || (null_is_absent && place->is_null()) ? nullptr : &*place;
    };
    const nlohmann::json* const value = lookup(key.name);
    const nlohmann::json* const twin = lookup(key.alias);
    if (value == nullptr) return {key.alias == nullptr ? key.name : key.alias, twin};
    if (twin != nullptr && *twin != *value)
      refuse(key.name, "is " + shown(*value) + ", but \"" + key.alias + "\" is " + shown(*twin));
    return {key.name, value};
  }

  index_t integer_of(std::string_view name, const nlohmann::json& value, integer_range range) const {
    const bool fits =
        value.is_number_unsigned() ? std::in_range<index_t>(value.get<std::uint64_t>()) : value.is_number_integer();
    if (!fits || value.get<index_t>() < range.least || value.get<index_t>() > range.most)
      refuse(name, "must be an integer from " + std::to_string(range.least) + " to " + std::to_string(range.most) +
                       ", is " + shown(value));
    return value.get<index_t>();
  }

  static std::string shown(const nlohmann::json& value) {
    if (value.is_string()) return "\"" + printable(value.get_ref<const std::string&>()) + "\"";
    if (value.is_array()) return "an array";
    if (value.is_object()) return "an object";
    return value.dump();
  }

  const nlohmann::json* value_;
  const std::string* file_;
  std::string path_;
};

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
