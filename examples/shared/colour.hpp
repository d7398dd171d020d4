/// A colour scale for shares: from nearly white over green and blue to dark violet.
///
/// Computed in OKLCH (B. Ottosson 2020), where equal steps of lightness look equal: lightness falls evenly, so the
/// order of two colours is seen without knowing the hue, in grey print and with any colour blindness.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numbers>
#include <string>

namespace shared {

/// Parts of an sRGB colour, 0..1.
struct colour {
  double red, green, blue;
};

/// The colour of `t` in 0..1 (values outside count as the nearer end).
inline colour scale_colour(double t) {
  t = std::clamp(t, 0.0, 1.0);
  const double lightness = 0.975 - 0.70 * t;
  const double chroma = 0.015 + 0.40 * t * (1 - t) + 0.10 * t * t;
  const double hue = (120 + 175 * t) * std::numbers::pi / 180;
  const double a = chroma * std::cos(hue), b = chroma * std::sin(hue);

  const auto cube = [](double x) { return x * x * x; };
  const double l = cube(lightness + 0.3963377774 * a + 0.2158037573 * b);
  const double m = cube(lightness - 0.1055613458 * a - 0.0638541728 * b);
  const double s = cube(lightness - 0.0894841775 * a - 1.2914855480 * b);
  const auto gamma = [](double x) {
    x = std::clamp(x, 0.0, 1.0);
    return x <= 0.0031308 ? 12.92 * x : 1.055 * std::pow(x, 1 / 2.4) - 0.055;
  };
  return {gamma(4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s),
          gamma(-1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s),
          gamma(-0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * s)};
}

/// Brightness as WCAG measures contrast, 0 (black) to 1 (white).
inline double luminance(const colour& c) {
  const auto linear = [](double x) { return x <= 0.04045 ? x / 12.92 : std::pow((x + 0.055) / 1.055, 2.4); };
  return 0.2126 * linear(c.red) + 0.7152 * linear(c.green) + 0.0722 * linear(c.blue);
}

/// "#rrggbb"
inline std::string hex(const colour& c) {
  const auto byte = [](double x) { return static_cast<unsigned>(std::lround(255 * x)); };
  char text[8];
  std::snprintf(text, sizeof text, "#%02x%02x%02x", byte(c.red) & 255u, byte(c.green) & 255u, byte(c.blue) & 255u);
  return text;
}

}  // namespace shared
