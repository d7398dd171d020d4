/// json_value, parse_json: the tree of a JSON file that is not trusted.
///
/// Refused with a file_error: more than 16 MB; text that is not JSON in UTF-8, or holds a NUL; nesting deeper than 32.
/// Who asks for a key can see whether it was given twice. NaN, Infinity and -Infinity, as Python writes them, and
/// numbers beyond every double are values that are no numbers. A tree of its own, because destroying nlohmann's takes
/// memory: where there is none left, the program ends.
#pragma once

#include <sluice/core/types.hpp>
#include <sluice/io/file_error.hpp>
#include <sluice/io/json_text.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA::detail {

class json_value {
public:
  enum class kind { null, boolean, negative, whole, real, text, word, array, object };

  json_value() = default;
  explicit json_value(bool v) : kind_(kind::boolean), whole_(v ? 1 : 0) {}
  explicit json_value(std::int64_t v) : kind_(kind::negative), whole_(static_cast<std::uint64_t>(v)) {}
  explicit json_value(std::uint64_t v) : kind_(kind::whole), whole_(v) {}
  explicit json_value(double v) : kind_(kind::real), real_(v) {}
  explicit json_value(std::string v) : kind_(kind::text), text_(std::move(v)) {}
  explicit json_value(kind container) : kind_(container) {}
  /// NaN or an infinity, under its name.
  static json_value of_word(std::string name) {
    json_value v(kind::word);
    v.text_ = std::move(name);
    return v;
  }

  bool is_null() const { return kind_ == kind::null; }
  bool is_boolean() const { return kind_ == kind::boolean; }
  bool is_number() const { return kind_ == kind::negative || kind_ == kind::whole || kind_ == kind::real; }
  bool is_string() const { return kind_ == kind::text; }
  bool is_array() const { return kind_ == kind::array; }
  bool is_object() const { return kind_ == kind::object; }

  bool boolean() const { return whole_ != 0; }
  const std::string& text() const { return text_; }
  /// Whether the number is whole and between the two, and then the number.
  bool is_within(index_t least, index_t most) const {
    if (kind_ == kind::whole) return std::in_range<index_t>(whole_) && integer() >= least && integer() <= most;
    return kind_ == kind::negative && integer() >= least && integer() <= most;
  }
  index_t integer() const { return static_cast<index_t>(whole_); }
  double number() const {
    return kind_ == kind::real    ? real_
           : kind_ == kind::whole ? static_cast<double>(whole_)
                                  : static_cast<double>(integer());
  }

  /// Elements of an array, or values of an object in the order of its keys.
  const std::vector<json_value>& elements() const { return elements_; }
  /// The value of an object's key, or nullptr.
  const json_value* find(std::string_view key) const {
    const auto found = std::find(keys_.begin(), keys_.end(), key);
    return found == keys_.end() ? nullptr : &elements_[static_cast<std::size_t>(found - keys_.begin())];
  }

  /// Whether an object has the key more than once; find gives the first.
  bool repeats(std::string_view key) const {
    return std::find(repeated_.begin(), repeated_.end(), key) != repeated_.end();
  }

  /// As a message shows it.
  std::string shown() const {
    switch (kind_) {
      case kind::null:
        return "null";
      case kind::boolean:
        return boolean() ? "true" : "false";
      case kind::negative:
        return std::to_string(integer());
      case kind::whole:
        return std::to_string(whole_);
      case kind::real:
        return nlohmann::json(real_).dump();
      case kind::text:
        return '"' + printable(text_) + '"';
      case kind::word:
        return text_;
      case kind::array:
        return "an array";
      case kind::object:
        break;
    }
    return "an object";
  }

  /// Appends to an array, or to an object under a key.
  json_value& add(json_value v) { return elements_.emplace_back(std::move(v)); }
  json_value& add(const std::string& key, json_value v) {
    keys_.push_back(key);
    return elements_.emplace_back(std::move(v));
  }
  void add_repeated(const std::string& key) { repeated_.push_back(key); }

  friend bool operator==(const json_value&, const json_value&) = default;

private:
  kind kind_ = kind::null;
  std::uint64_t whole_ = 0;
  double real_ = 0;
  std::string text_;
  std::vector<std::string> keys_;  // of an object, beside elements_
  std::vector<std::string> repeated_;
  std::vector<json_value> elements_;
};

/// Builds the tree from the parser's events.
class json_builder : public json_handler {
public:
  explicit json_builder(const std::string& file) : json_handler(file, "its text") {}

  json_value root;

  bool null() { return put(json_value()); }
  bool boolean(bool v) { return put(json_value(v)); }
  bool number_integer(std::int64_t v) { return put(json_value(v)); }
  bool number_unsigned(std::uint64_t v) { return put(json_value(v)); }
  bool number_float(double v, const std::string& text) {
    return put(is_word(text) ? json_value::of_word(written(text)) : json_value(v));
  }
  bool string(std::string& v) { return put(json_value(std::move(v))); }
  bool binary(nlohmann::json::binary_t&) { throw file_error(file(), "holds binary data"); }
  bool key(std::string& name) {
    if (!keys_.back().insert(name).second) open_.back()->add_repeated(name);
    key_ = std::move(name);
    return true;
  }
  bool start_object(std::size_t) { return open(json_value::kind::object); }
  bool start_array(std::size_t) { return open(json_value::kind::array); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }

private:
  static constexpr std::size_t deepest = 32;

  json_value& place(json_value&& v) {
    if (open_.empty()) return root = std::move(v);
    return open_.back()->is_object() ? open_.back()->add(key_, std::move(v)) : open_.back()->add(std::move(v));
  }
  bool put(json_value&& v) {
    place(std::move(v));
    return true;
  }
  bool open(json_value::kind container) {
    if (open_.size() >= deepest) throw file_error(file(), "is nested deeper than " + std::to_string(deepest));
    open_.push_back(&place(json_value(container)));  // stays where it is: only the innermost container grows
    keys_.emplace_back();
    return true;
  }
  bool close() {
    open_.pop_back();
    keys_.pop_back();
    return true;
  }

  std::vector<json_value*> open_;
  std::vector<std::set<std::string>> keys_;  // of every container that is open
  std::string key_;
};

inline json_value parse_json(std::string_view text, const std::string& file) {
  constexpr std::size_t longest = std::size_t{16} << 20U;
  if (text.size() > longest)
    throw file_error(file, "its " + std::to_string(text.size()) + " bytes exceed the limit of " +
                               std::to_string(longest) + " for JSON");
  json_builder builder(file);
  read_json(std::as_bytes(std::span(text)), builder);
  return std::move(builder.root);
}

}  // namespace sluice::inline SLUICE_ISA::detail
