/// read_json: hands the events of untrusted JSON text to a handler, and what such handlers share.
///
/// A handler derives from json_handler and has the members that nlohmann::json::sax_parse calls. It refuses any event
/// that its format has no place for by throwing a file_error, so nesting is bounded by the format itself: the parser
/// keeps one bit a level and does not recurse. Text that is not JSON in UTF-8, and a NUL anywhere in it, are refused.
#pragma once

#include <sluice/core/isa.hpp>
#include <sluice/io/file_error.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>

namespace sluice::inline SLUICE_ISA::detail {

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

private:
  const std::string& file_;
  const char* text_;
};

template <typename Handler>
void read_json(std::span<const std::byte> text, Handler& handler) {
  // The JSON parser takes a NUL for the end of its input: what comes after it would be hidden from every check.
  if (const auto nul = std::find(text.begin(), text.end(), std::byte{0}); nul != text.end())
    throw file_error(handler.file(),
                     std::string(handler.text()) + " has a NUL at its byte " + std::to_string(nul - text.begin()));
  const auto* const first = reinterpret_cast<const char*>(text.data());
  nlohmann::json::sax_parse(first, first + text.size(), &handler);
}

}  // namespace sluice::inline SLUICE_ISA::detail
