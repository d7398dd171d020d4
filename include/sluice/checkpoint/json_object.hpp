/// json_object: checked access to what a JSON file says.
///
///   const detail::json_value document = detail::parse_json(text, file);
///   const detail::json_object config(document, file);
///   config.integer({"num_experts", "num_local_experts"}, {1, 64});   // two spellings of one key
///
/// Refused with a file_error that names the file, the key and the numbers: values of another type than asked for, out
/// of range or fractional; a key given twice; spellings of one key that disagree. Keys that nobody asks for may hold
/// anything. The functions with `if_given` take null for an absent key, as the classes that write these files do;
/// elsewhere null is a value of the wrong type.
#pragma once

#include <sluice/checkpoint/json_value.hpp>
#include <sluice/core/types.hpp>
#include <sluice/io/file_error.hpp>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

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
  json_object(const json_value& value, const std::string& file, std::string path = {})
      : value_(&value), file_(&file), path_(std::move(path)) {
    if (!value.is_object())
      throw file_error(file, (path_.empty() ? std::string() : "key \"" + path_.substr(0, path_.size() - 1) + "\": ") +
                                 "must be a JSON object, is " + value.shown());
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
    if (!value->is_array()) refuse(name, "must be an array of integers, is " + value->shown());
    std::vector<index_t> out;
    out.reserve(value->elements().size());
    for (const json_value& element : value->elements()) out.push_back(integer_of(name, element, range));
    return out;
  }

  bool boolean(json_key key, bool otherwise) const {
    const auto [name, value] = find(key, false);
    if (value == nullptr) return otherwise;
    if (!value->is_boolean()) refuse(name, "must be true or false, is " + value->shown());
    return value->boolean();
  }

  /// A number above `above` and up to `most`.
  std::optional<double> number_if_given(json_key key, double above, double most) const {
    const auto [name, value] = find(key, true);
    if (value == nullptr) return std::nullopt;
    if (!value->is_number()) refuse(name, "must be a number, is " + value->shown());
    const double number = value->number();
    if (!(number > above && number <= most))
      refuse(name, "must be above " + json_value(above).shown() + " and at most " + json_value(most).shown() +
                       ", is " + value->shown());
    return number;
  }

  std::optional<std::string> text_if_given(json_key key) const {
    const auto [name, value] = find(key, true);
    if (value == nullptr) return std::nullopt;
    if (!value->is_string()) refuse(name, "must be a string, is " + value->shown());
    return value->text();
  }

  std::optional<std::vector<std::string>> texts_if_given(json_key key) const {
    const auto [name, value] = find(key, true);
    if (value == nullptr) return std::nullopt;
    if (!value->is_array()) refuse(name, "must be an array of strings, is " + value->shown());
    std::vector<std::string> out;
    for (const json_value& element : value->elements()) {
      if (!element.is_string()) refuse(name, "must be an array of strings, one is " + element.shown());
      out.push_back(element.text());
    }
    return out;
  }

  /// One number, or a list that holds it for every block. Throws if its numbers differ.
  std::optional<index_t> common_integer_if_given(json_key key, integer_range range) const {
    const auto [name, value] = find(key, true);
    if (value == nullptr || !value->is_array()) return integer_if_given(key, range);
    const std::vector<index_t> list = *integers_if_given(key, range);
    for (const index_t each : list)
      if (each != list.front())
        refuse(name, "differs from block to block, " + std::to_string(list.front()) + " and " + std::to_string(each) +
                         ", which is not supported");
    return list.empty() ? std::nullopt : std::optional(list.front());
  }

  /// Refuses the file if the key is there and holds anything but `only`.
  void expect_text(json_key key, std::string_view only) const {
    const auto [name, value] = find(key, false);
    if (value != nullptr && !(value->is_string() && value->text() == only))
      refuse(name, "only \"" + std::string(only) + "\" is supported, not " + value->shown());
  }

  void expect_boolean(json_key key, bool only) const {
    if (boolean(key, only) != only)
      refuse(key.name,
             std::string("only ") + (only ? "true" : "false") + " is supported, not " + (only ? "false" : "true"));
  }

  const json_value* value_if_given(json_key key) const { return find(key, true).second; }

  /// Whether the key is there and holds null, where that is another answer than an absent key.
  bool says_null(json_key key) const {
    const json_value* const value = find(key, false).second;
    return value != nullptr && value->is_null();
  }

  /// Whether the key is there and holds 0, where that is another answer than a number above.
  bool says_zero(json_key key) const {
    const json_value* const value = find(key, false).second;
    return value != nullptr && value->is_number() && !(value->number() < 0) && !(value->number() > 0);
  }

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
  std::pair<std::string_view, const json_value*> find(json_key key, bool null_is_absent) const {
    const auto lookup = [&](const char* name) -> const json_value* {
      if (name == nullptr) return nullptr;
      if (value_->repeats(name)) refuse(name, "is given twice");
      const json_value* const place = value_->find(name);
      return place == nullptr || (null_is_absent && place->is_null()) ? nullptr : place;
    };
    const json_value* const value = lookup(key.name);
    const json_value* const twin = lookup(key.alias);
    if (value == nullptr) return {key.alias == nullptr ? key.name : key.alias, twin};
    if (twin != nullptr && *twin != *value)
      refuse(key.name, "is " + value->shown() + ", but \"" + key.alias + "\" is " + twin->shown());
    return {key.name, value};
  }

  index_t integer_of(std::string_view name, const json_value& value, integer_range range) const {
    if (!value.is_within(range.least, range.most))
      refuse(name, "must be an integer from " + std::to_string(range.least) + " to " + std::to_string(range.most) +
                       ", is " + value.shown());
    return value.integer();
  }

  const json_value* value_;
  const std::string* file_;
  std::string path_;
};

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
