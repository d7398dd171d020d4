/// How sluice reports bad arguments: std::invalid_argument with the numbers in the message.
///
/// Constructors, loaders and the entry of a call check and throw; inner loops only assert. In a program built with
/// -fno-exceptions a failed check ends the program through std::terminate.
#pragma once

#include <sluice/core/isa.hpp>

#include <exception>
#include <stdexcept>
#include <string>
#include <string_view>

namespace sluice::inline SLUICE_ISA {

namespace detail {

inline void append_part(std::string& text, std::string_view part) { text += part; }
template <typename Number>
  requires std::is_arithmetic_v<Number>
void append_part(std::string& text, Number part) {
  text += std::to_string(part);
}

}  // namespace detail

/// Throws std::invalid_argument whose message is "sluice: " and the parts put together.
template <typename... Parts>
[[noreturn]] void throw_invalid(const Parts&... parts) {
  std::string message = "sluice: ";
  (detail::append_part(message, parts), ...);
#if defined(__cpp_exceptions)
  throw std::invalid_argument(message);
#else
  std::terminate();
#endif
}

}  // namespace sluice::inline SLUICE_ISA
