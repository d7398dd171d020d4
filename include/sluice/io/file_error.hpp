/// file_error: thrown by everything in io/ when a file cannot be read, cannot be trusted or cannot be written.
///
/// The message names the file, the tensor (where one is to blame) and the reason with its numbers:
///   sluice: file "model.safetensors": tensor "experts.up": shape [8, 4] of F32 needs 128 bytes, data_offsets hold 96
/// Text that comes out of a file is shown with control and non-ASCII bytes escaped and cut to a readable length,
/// because the file may be hostile and the message may reach a terminal or a log.
#pragma once

#include <sluice/core/isa.hpp>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>

namespace sluice::inline SLUICE_ISA {
namespace detail {

/// Text from a file, safe to print: bytes outside printable ASCII as \xNN, at most `longest` bytes of the original.
inline std::string printable(std::string_view text, std::size_t longest = 200) {
  constexpr std::string_view digits = "0123456789ABCDEF";
  std::string out;
  for (const char c : text.substr(0, longest)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7F) {
      out += c;
    } else {
      out += "\\x";
      out += digits[byte >> 4U];
      out += digits[byte & 15U];
    }
  }
  if (text.size() > longest) out += "... (" + std::to_string(text.size()) + " bytes)";
  return out;
}

}  // namespace detail

class file_error : public std::runtime_error {
public:
  file_error(const std::string& file, const std::string& reason)
      : std::runtime_error("sluice: file \"" + file + "\": " + reason) {}

  file_error(const std::string& file, std::string_view tensor, const std::string& reason)
      : std::runtime_error("sluice: file \"" + file + "\": tensor \"" + detail::printable(tensor) + "\": " + reason) {}
};

}  // namespace sluice::inline SLUICE_ISA
