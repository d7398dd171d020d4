/// Numbers with a fraction as text, there and back to the bit.
#pragma once

#include <charconv>
#include <string>
#include <system_error>

namespace language_model {

/// The shortest text from which the same number is read.
inline std::string shortest(double value) {
  char text[64];
  return {text, std::to_chars(text, text + sizeof text, value).ptr};
}

/// Whether the whole of `text` is a number in [least, most], which then is in `number`.
template <typename Number>
bool read_number(const std::string& text, Number& number, Number least, Number most) {
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), number);
  return status == std::errc() && end == text.data() + text.size() && number >= least && number <= most;
}

}  // namespace language_model
