/// How sluice reports bad arguments: std::invalid_argument with the numbers in the message.
///
/// Constructors, loaders and the entry of a call check and throw; inner loops only assert. In a program built with
/// -fno-exceptions a failed check ends the program through std::terminate.
#pragma once

#include <sluice/core/isa.hpp>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace sluice::inline SLUICE_ISA {

namespace detail {

inline void append_part(std::string& text, std::string_view part) { text += part; }
template <typename Number>
  requires std::is_arithmetic_v<Number>
void append_part(std::string& text, Number part) {
  if constexpr (std::is_floating_point_v<Number>) {
    // As few digits as say which number it is: 0.5, 1e-09, and 1.0000001 where 1 would hide what is wrong with it.
    char digits[32];
    for (const int count : {6, 9, 15, 17}) {
      std::snprintf(digits, sizeof digits, "%.*g", count, static_cast<double>(part));
      if (static_cast<Number>(std::strtod(digits, nullptr)) == part) break;
    }
    text += digits;
  } else {
    text += std::to_string(part);
  }
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
