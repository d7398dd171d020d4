/// read_json: hands the events of untrusted JSON text to a handler, and what such handlers share.
///
/// A handler derives from json_handler and has the members that nlohmann::json::sax_parse calls. It refuses any event
/// that its format has no place for by throwing a file_error, so nesting is bounded by the format itself: the parser
/// keeps one bit a level and does not recurse. Text that is not JSON in UTF-8, and a NUL anywhere in it, are refused;
/// but NaN, Infinity and -Infinity, which Python writes for numbers, and numbers beyond every double, such as 1e999,
/// reach the handler as numbers that `written` knows.
#pragma once

#include <sluice/core/isa.hpp>
#include <sluice/io/file_error.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace sluice::inline SLUICE_ISA::detail {

/// What stands for a number and is no JSON, and a number of the same length that nobody writes, so that places in
/// messages stay those of the file.
inline constexpr std::array<std::pair<std::string_view, std::string_view>, 3> number_words{
    {{"NaN", "0e7"}, {"Infinity", "0e000007"}, {"-Infinity", "-0e000007"}}};

/// What stands in for a number beyond every double: of its length, at least that of "1e309".
inline std::string stand_in_for_large(std::size_t length) { return "0e" + std::string(length - 3, '0') + '9'; }

class json_handler {
public:
  /// `text` is what messages call the JSON text: "header". Both must outlive the handler.
  json_handler(const std::string& file, const char* text) : file_(file), text_(text) {}

  const std::string& file() const noexcept { return file_; }
  const char* text() const noexcept { return text_; }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception& error) {
    throw file_error(file_, std::string(text_) + " is not valid JSON at its byte " + std::to_string(position) + ": " +
                                printable(error.what(), 300));
  }

protected:
  /// What the file has where the parser saw this number.
  static std::string written(const std::string& number) {
    for (const auto& [word, stand_in] : number_words)
      if (number == stand_in) return std::string(word);
    return number.size() >= 5 && number == stand_in_for_large(number.size()) ? "a number beyond 1.8e308" : number;
  }
  static bool is_word(const std::string& number) { return written(number) != number; }

private:
  const std::string& file_;
  const char* text_;
};

/// Whether this is a JSON number with an exponent that is beyond every double. By its digits: -ffast-math knows no
/// infinity.
inline bool is_beyond_double(std::string_view number) {
  const auto letter = number.find_first_of("eE");
  if (letter == std::string_view::npos) return false;
  std::string_view digits = number.substr(0, letter), exponent = number.substr(letter + 1);
  if (exponent.starts_with('+')) exponent.remove_prefix(1);
  if (exponent.empty() || exponent.find_first_not_of("0123456789") != std::string_view::npos ||
      !nlohmann::json::accept(digits.begin(), digits.end()))
    return false;
  std::int64_t power = 0;
  if (std::from_chars(exponent.data(), exponent.data() + exponent.size(), power).ec != std::errc()) power = 1 << 30;

  if (digits.starts_with('-')) digits.remove_prefix(1);
  const std::size_t point = (std::min)(digits.find('.'), digits.size());
  const std::size_t first = digits.find_first_not_of("0.");
  if (first == std::string_view::npos) return false;
  // The number is 0.d1 d2 ... times ten to this power.
  power += static_cast<std::int64_t>(point) - static_cast<std::int64_t>(first) + (first > point ? 1 : 0);
  if (power != 309) return power > 309;
  std::string leading(digits.substr(first));
  std::erase(leading, '.');
  return leading.substr(0, 21) > "179769313486231580793";  // where numbers begin to round to infinity
}

/// The text with other numbers in the places of words and of numbers that no double holds; empty if it has none.
inline std::string without_number_words(std::string_view text) {
  const auto stands_apart = [text](std::size_t begin, std::size_t end) {
    constexpr std::string_view before = " \t\r\n,:[", after = " \t\r\n,]}";
    return (begin == 0 || before.find(text[begin - 1]) != std::string_view::npos) &&
           (end == text.size() || after.find(text[end]) != std::string_view::npos);
  };
  std::string changed;
  const auto replace = [&](std::size_t at, std::string_view stand_in) {
    if (changed.empty()) changed = text;
    changed.replace(at, stand_in.size(), stand_in);
  };
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '"') in_string = !in_string;
    if (in_string && text[i] == '\\') ++i;
    if (in_string) continue;
    if (text[i] == 'N' || text[i] == 'I' || text[i] == '-')
      for (const auto& [word, stand_in] : number_words)
        if (text.substr(i).starts_with(word) && stands_apart(i, i + word.size())) replace(i, stand_in);
    if (text[i] != '-' && (text[i] < '0' || text[i] > '9')) continue;
    const std::size_t end = (std::min)(text.find_first_not_of("0123456789+-.eE", i), text.size());
    if (stands_apart(i, end) && is_beyond_double(text.substr(i, end - i))) replace(i, stand_in_for_large(end - i));
    if (end > i) i = end - 1;
  }
  return changed;
}

template <typename Handler>
void read_json(std::span<const std::byte> text, Handler& handler) {
  // The JSON parser takes a NUL for the end of its input: what comes after it would be hidden from every check.
  if (const auto nul = std::find(text.begin(), text.end(), std::byte{0}); nul != text.end())
    throw file_error(handler.file(),
                     std::string(handler.text()) + " has a NUL at its byte " + std::to_string(nul - text.begin()));
  const std::string_view given(reinterpret_cast<const char*>(text.data()), text.size());
  const std::string changed = without_number_words(given);
  const std::string_view json = changed.empty() ? given : changed;
  nlohmann::json::sax_parse(json.data(), json.data() + json.size(), &handler);
}

}  // namespace sluice::inline SLUICE_ISA::detail
