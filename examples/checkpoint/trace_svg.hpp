/// A routing trace as a picture: how much every expert of every layer has to do, and which experts share their tokens.
///
/// The strip has a row a layer and a column an expert; its colour is the expert's load as a multiple of an even load. A
/// map has a row and a column an expert; its colour is the part of the row expert's tokens that also go to the
/// column's. An expert with itself is grey. Cells that are wide enough say their number.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "grid_svg.hpp"
#include "routing_trace.hpp"

namespace checkpoint {

namespace detail {

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
