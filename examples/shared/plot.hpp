/// Marks of a plot in an SVG picture: lines, discs, and numbered discs that make room for each other.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "svg.hpp"

namespace shared {

inline std::string line(double x1, double y1, double x2, double y2, std::string_view colour, double width = 1) {
  return "<line x1=\"" + number(x1) + "\" y1=\"" + number(y1) + "\" x2=\"" + number(x2) + "\" y2=\"" + number(y2) +
         "\" stroke=\"" + std::string(colour) + "\" stroke-width=\"" + number(width) + "\"/>\n";
}
inline std::string circle(double x, double y, double radius, std::string_view fill) {
  return "<circle cx=\"" + number(x) + "\" cy=\"" + number(y) + "\" r=\"" + number(radius) + "\" fill=\"" +
         std::string(fill) + "\"/>\n";
}

/// A numbered disc on every point. Discs that would hide each other move aside and keep a line to where they belong.
class numbered_points {
public:
  static constexpr double radius = 8.5;

  std::string draw(double x, double y, int n, const std::string& colour) {
    double px = x, py = y;
    for (int attempt = 1; hides(px, py) && attempt < 4000; ++attempt) {
      const double angle = 2.399963 * attempt, far = 2.2 * std::sqrt(static_cast<double>(attempt)) * radius / 2;
      px = x + far * std::cos(angle) * 1.3;
      py = y + far * std::sin(angle);
    }
    placed_.emplace_back(px, py);
    std::string out;
    if (px != x || py != y) out += line(x, y, px, py, colour, 0.6) + circle(x, y, 1.8, colour);
    return out + circle(px, py, radius, colour) +
           svg_text(px, py + 3.4, 9.5, "middle", std::to_string(n), "fill=\"#ffffff\" font-weight=\"bold\"");
  }

private:
  bool hides(double x, double y) const {
    return std::any_of(placed_.begin(), placed_.end(), [&](const auto& other) {
      return std::hypot(other.first - x, other.second - y) < 2 * radius + 0.5;
    });
  }
  std::vector<std::pair<double, double>> placed_;
};

}  // namespace shared
