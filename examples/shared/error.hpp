/// The error that an example program explains to its user: something he gave is wrong.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace shared {

/// Wrong command line, or a file that is not what it should be. main() prints the message as one line and exits with 2.
class input_error : public std::runtime_error {
public:
  using std::runtime_error::runtime_error;
};

/// `text` in quotes as it can be shown in a terminal: long text is cut, and bytes that are not printable ASCII become
/// \xNN.
inline std::string in_quotes(std::string_view text) {
  constexpr std::size_t longest = 24;
  constexpr char hex[] = "0123456789ABCDEF";
  std::string out = "'";
  for (const char c : text.substr(0, longest)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7F)
      out += c;
    else
      (out += "\\x") += {hex[byte >> 4], hex[byte & 15]};
  }
  return out + (text.size() > longest ? "...'" : "'");
}

}  // namespace shared
