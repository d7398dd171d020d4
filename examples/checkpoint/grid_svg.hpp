/// Grids of coloured cells with their colour scale and their axes, as parts of an SVG picture.
#pragma once

#include <sluice/core/types.hpp>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <string_view>

#include "../shared/svg.hpp"
#include "../shared/text.hpp"

namespace checkpoint {

using sluice::index_t;

namespace detail {

using shared::svg_rectangle;
using shared::svg_text;

inline constexpr std::string_view grey = "fill=\"#5b6470\"";
inline constexpr std::string_view itself_colour = "#c9ced4";
inline constexpr std::string_view border = " stroke=\"#8d96a1\"";

/// The smallest of 1, 2 and 5 times a power of ten that cuts [0, most] into five steps or fewer.
inline double tick_step(double most) {
  const double power = std::pow(10.0, std::floor(std::log10(most / 5)));
  for (const double step : {1.0, 2.0, 5.0})
    if (most / (step * power) <= 5 + 1e-9) return step * power;
  return 10 * power;
}

/// A colour scale from 0 to `most`, rounded up to a whole number of steps.
struct scale {
  double step, most;

  explicit scale(double largest)
      : step(tick_step(std::max(largest, 1e-6))), most(std::ceil(largest / step - 1e-9) * step) {
    most = std::max(most, step);
  }

  std::string legend(double x, double y, double factor, std::string_view unit, std::string_view meaning) const {
    constexpr double width = 260, height = 12;
    std::string out = shared::colour_bar(x, y, width, height);
    const auto ticks = std::lround(most / step);
    const double shown = factor * step;
    const int digits = shown >= 1 - 1e-9 ? 0 : static_cast<int>(std::ceil(-std::log10(shown) - 1e-9));
    for (long i = 0; i <= ticks; ++i)
      out += svg_text(x + width * static_cast<double>(i) / static_cast<double>(ticks), y + height + 15, 11, "middle",
                      shared::fixed(factor * step * static_cast<double>(i), digits) + std::string(unit));
    return out + svg_text(x + width + 24, y + 10, 12, "start", meaning, grey);
  }
};

/// Cells of a grid whose corner is (x, y), each `size` wide and `height` high. Cells of one colour are one path, which
/// keeps maps of hundreds of experts small; that is why the scale is cut into steps that no eye can tell apart.
class cells {
public:
  void add(index_t column, index_t row, double share) {
    const auto level = std::lround(std::clamp(share, 0.0, 1.0) * levels);
    paths_[static_cast<int>(level)] += "M" + std::to_string(column) + " " + std::to_string(row) + "h1v1h-1z";
  }

  std::string text(double x, double y, double width, double height) const {
    std::string out = "<g shape-rendering=\"crispEdges\" transform=\"translate(" + shared::number(x) + " " +
                      shared::number(y) + ") scale(" + shared::fixed(width, 5) + " " + shared::fixed(height, 5) +
                      ")\">\n";
    for (const auto& [level, path] : paths_)
      out += "<path fill=\"" + shared::hex(shared::scale_colour(static_cast<double>(level) / levels)) + "\" d=\"" +
             path + "\"/>\n";
    return out + "</g>\n";
  }

private:
  static constexpr int levels = 64;
  std::map<int, std::string> paths_;
};

/// The number of a cell in the colour that `cells` gives it, if the cell is wide enough.
inline std::string cell_number(double left, double top, double width, double height, double share,
                               const std::string& text) {
  constexpr double font = 9;
  if (shared::text_width(text, font) + 2 > width || font > height) return {};
  return shared::svg_cell_text(left + width / 2, top + height / 2, font, text, shared::scale_colour(share));
}

/// An axis' name beside the middle of the axis, upright on the left of a picture.
inline std::string upright_text(double x, double y, std::string_view text) {
  return svg_text(x, y, 11, "middle", text,
                  std::string(grey) + " transform=\"rotate(-90 " + shared::number(x) + " " + shared::number(y) + ")\"");
}

/// Every how many experts an axis has a number, if numbers need `room` and a cell takes `cell`.
inline index_t label_step(double cell, double room, index_t experts) {
  index_t step = 1;
  while (static_cast<double>(step) * cell < room && step < experts)
    step *= step == 1 || experts % (2 * step) == 0 ? 2 : 5;
  return step;
}

}  // namespace detail

}  // namespace checkpoint
