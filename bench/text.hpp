/// Numbers as text.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

namespace bench {

inline std::string fixed(double value, int digits) {
  char text[64];
  const int length = std::snprintf(text, sizeof text, "%.*f", digits, value);
  return std::string(text, static_cast<std::size_t>(std::clamp(length, 0, 63)));
}

/// Three significant digits, but never an exponent.
inline std::string significant(double value) {
  if (!(value > 0)) return "0";
  const int magnitude = static_cast<int>(std::floor(std::log10(value)));
  return fixed(value, std::clamp(2 - magnitude, 0, 6));
}

inline std::string milliseconds(double seconds) { return significant(1e3 * seconds); }
inline std::string percent(double share) { return fixed(100 * share, share < 0.0995 ? 1 : 0) + " %"; }
inline std::string megabytes(double bytes) { return significant(bytes / 1e6) + " MB"; }

}  // namespace bench
