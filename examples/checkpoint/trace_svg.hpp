/// A routing trace as a picture: how much every expert of every layer has to do, and which experts share their tokens.
///
/// The strip has a row a layer and a column an expert; its colour is the expert's load as a multiple of an even load. A
/// map has a row and a column an expert; its colour is the part of the row expert's tokens that also go to the
/// column's. An expert with itself is grey. Cells that are wide enough say their number.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "../shared/svg.hpp"
#include "../shared/text.hpp"
#include "routing_trace.hpp"

namespace checkpoint {

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

inline double longest_text(const std::vector<traced_layer>& layers, double size) {
  double width = 0;
  for (const traced_layer& layer : layers) width = std::max(width, shared::text_width(layer.name, size));
  return width;
}

/// The strip of loads, from (x, y) on, `width` wide; `bottom` becomes where it ends.
inline std::string load_strip(const std::vector<traced_layer>& layers, double x, double y, double width,
                              double& bottom) {
  constexpr std::array<std::string_view, 3> columns = {"evenness", "dead", "max / even"};
  constexpr double column_width = 74, font = 11;
  const double left = x + longest_text(layers, font) + 12;
  const double strip = width - (left - x) - 3 * column_width;
  const double height = layers.size() > 32 ? 14 : 20;
  index_t experts = 1;
  double most = 1;
  for (const traced_layer& layer : layers) {
    experts = std::max(experts, layer.experts);
    most = std::max(most, layer.max_over_mean());
  }
  const scale colours(most);
  const double cell = strip / static_cast<double>(experts);

  std::string out =
      colours.legend(left, y, 1, "x", "times an even load: 1 is a perfectly balanced expert, 0 a dead one");
  y += 58;
  for (std::size_t c = 0; c < columns.size(); ++c)
    out +=
        svg_text(left + strip + (static_cast<double>(c) + 1) * column_width - 4, y - 8, font, "end", columns[c], grey);
  out += svg_text(left - 8, y - 8, font, "end", "layer", grey);
  cells grid;
  std::string hints, numbers_in_cells;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const traced_layer& layer = layers[l];
    const double top = y + static_cast<double>(l) * height, base = top + height / 2 + 4;
    out += svg_text(left - 8, base, font, "end", layer.name);
    for (index_t e = 0; e < layer.experts; ++e) {
      const auto load = layer.load[static_cast<std::size_t>(e)];
      const double times = load == 0 ? 0 : static_cast<double>(load) / layer.even_load();
      grid.add(e, static_cast<index_t>(l), times / colours.most);
      numbers_in_cells += cell_number(left + static_cast<double>(e) * cell, top, cell, height, times / colours.most,
                                      load == 0 ? "0" : shared::fixed(times, 1));
      hints += svg_rectangle(left + static_cast<double>(e) * cell, top, cell, height, "transparent") + "><title>" +
               shared::xml_escaped(layer.name + ", expert " + std::to_string(e) + ": " + shared::grouped(load) +
                                   " tokens, " + shared::fixed(times, 2) + "x an even load") +
               "</title></rect>\n";
    }
    const std::array<std::string, 3> numbers = {
        shared::percent(layer.entropy_normalised(), 1),
        shared::percent(layer.dead_fraction(), layer.dead_fraction() > 0 ? 1 : 0),
        shared::fixed(layer.max_over_mean(), 2) + "x"};
    for (std::size_t c = 0; c < numbers.size(); ++c)
      out += svg_text(left + strip + (static_cast<double>(c) + 1) * column_width - 4, base, font, "end", numbers[c]);
  }
  const double end = y + static_cast<double>(layers.size()) * height;
  out += grid.text(left, y, cell, height) + svg_rectangle(left, y, strip, end - y, "none") + std::string(border) +
         "/>\n" + numbers_in_cells + hints;
  const index_t step = label_step(cell, shared::text_width(std::to_string(experts), font) + 8, experts);
  for (index_t e = 0; e < experts; e += step)
    out += svg_text(left + (static_cast<double>(e) + 0.5) * cell, end + 15, font, "middle", std::to_string(e));
  out += svg_text(left + strip / 2, end + 32, 12, "middle", "expert", grey);
  bottom = end + 36;
  return out;
}

/// The part of expert a's tokens that also go to expert b.
inline double shared_part(const traced_layer& layer, index_t a, index_t b) {
  const index_t load = layer.together(a, a);
  return load == 0 || a == b ? 0 : static_cast<double>(layer.together(a, b)) / static_cast<double>(load);
}

/// One layer's map, `side` wide and high without its labels; (x, y) is the corner of the map itself.
inline std::string pair_map(const traced_layer& layer, const scale& colours, double x, double y, double side) {
  constexpr double font = 10;
  const double cell = side / static_cast<double>(layer.experts);
  cells grid;
  std::string itself, numbers;
  for (index_t a = 0; a < layer.experts; ++a) {
    itself += "M" + std::to_string(a) + " " + std::to_string(a) + "h1v1h-1z";
    for (index_t b = 0; b < layer.experts; ++b) {
      if (a == b) continue;
      const double part = shared_part(layer, a, b);
      grid.add(b, a, part / colours.most);
      numbers +=
          cell_number(x + static_cast<double>(b) * cell, y + static_cast<double>(a) * cell, cell, cell,
                      part / colours.most, shared::fixed(100 * part, part > 0 && part < 0.0995 && cell > 20 ? 1 : 0));
    }
  }
  std::string out = svg_text(x, y - 9, 12, "start", layer.name, "font-weight=\"bold\"") + grid.text(x, y, cell, cell) +
                    "<g shape-rendering=\"crispEdges\" transform=\"translate(" + shared::number(x) + " " +
                    shared::number(y) + ") scale(" + shared::fixed(cell, 5) + ")\"><path fill=\"" +
                    std::string(itself_colour) + "\" d=\"" + itself + "\"/></g>\n" +
                    svg_rectangle(x, y, side, side, "none") + std::string(border) + "/>\n" + numbers +
                    svg_text(x + side / 2, y + side + 29, 11, "middle", "also go to expert", grey) +
                    upright_text(x - 28, y + side / 2, "of the tokens of expert");
  const index_t step = label_step(cell, shared::text_width(std::to_string(layer.experts), font) + 8, layer.experts);
  for (index_t e = 0; e < layer.experts; e += step) {
    const double middle = (static_cast<double>(e) + 0.5) * cell;
    out += svg_text(x + middle, y + side + 13, font, "middle", std::to_string(e)) +
           svg_text(x - 5, y + middle + 3.5, font, "end", std::to_string(e));
  }
  return out;
}

}  // namespace detail

/// The picture of a trace that is not empty. `maps` are the layers to draw co-activation maps of.
inline std::string trace_picture(const routing_trace& trace, const std::vector<std::size_t>& maps,
                                 std::string_view title, std::string_view subtitle) {
  using namespace detail;
  constexpr double margin = 36, width = 1120, inside = width - 2 * margin;
  double y = margin + 20;
  std::string body = svg_text(margin, y, 24, "start", title, "font-weight=\"bold\"");
  for (const auto& line : shared::wrapped(subtitle, 14, inside))
    body += svg_text(margin, y += 21, 14, "start", line, "fill=\"#3d4550\"");

  body += svg_text(margin, y += 42, 16, "start", "Load of the experts", "font-weight=\"bold\"");
  body += load_strip(trace.layers(), margin, y + 18, inside, y);
  body += svg_text(margin, y += 20, 11.5, "start",
                   "evenness: entropy of the load over the most that is possible; dead: experts without a token; max / "
                   "even: the busiest expert's load over an even one.",
                   grey);

  double most = 0;
  for (const std::size_t l : maps) {
    const traced_layer& layer = trace.layers()[l];
    for (index_t a = 0; a < layer.experts; ++a)
      for (index_t b = 0; b < layer.experts; ++b) most = std::max(most, shared_part(layer, a, b));
  }
  body += svg_text(margin, y += 48, 16, "start", "Experts that share tokens", "font-weight=\"bold\"");
  if (maps.empty() || most == 0) {
    body += svg_text(margin, y += 24, 12, "start", "No token has two experts, so no two experts share one.", grey);
    return shared::svg_picture(width, y + margin, title, body);
  }
  const scale colours(most);
  constexpr double gap_x = 62, gap_y = 76;
  const std::size_t columns = std::min<std::size_t>(maps.size(), 4);
  const double side =
      maps.size() == 1
          ? 560
          : std::min(320.0, (inside - static_cast<double>(columns) * gap_x) / static_cast<double>(columns));
  const double left = margin + 38;
  body +=
      colours.legend(left, y += 18, 100, " %",
                     "of the row expert's tokens also go to the column's expert (in percent, where cells have room)");
  y += 36;
  body += svg_rectangle(left, y, 12, 12, itself_colour) + std::string(border) + "/>\n" +
          svg_text(left + 20, y + 10, 12, "start",
                   "an expert with itself: all of its tokens, so there is nothing to see", grey);
  y += 58;
  for (std::size_t i = 0; i < maps.size(); ++i)
    body += pair_map(trace.layers()[maps[i]], colours, left + static_cast<double>(i % columns) * (side + gap_x),
                     y + static_cast<double>(i / columns) * (side + gap_y), side);
  const auto rows = static_cast<double>((maps.size() + columns - 1) / columns);
  y += rows * side + (rows - 1) * gap_y + 32;
  return shared::svg_picture(width, y + margin, title, body);
}

}  // namespace checkpoint
