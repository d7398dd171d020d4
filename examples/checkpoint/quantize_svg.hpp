/// What quantising came to as a picture: bits a weight, error of outputs and error of weights, a row a layer and a
/// column an expert.
///
/// Errors have one colour scale a strip, from 0 to the largest; beside each row stands that of its layer, and what
/// rounding every weight on its own would have made. Cells that are wide enough say their number. An expert without a
/// calibration token has no error of outputs: its cell is grey.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "grid_svg.hpp"
#include "quantize_report.hpp"

namespace checkpoint {

namespace detail {

struct rounded_layer {
  std::string name;
  std::vector<rounded_expert> experts;
};

inline std::vector<rounded_layer> by_layer(const std::vector<rounded_expert>& experts) {
  std::vector<rounded_layer> layers;
  for (const rounded_expert& expert : experts) {
    if (layers.empty() || layers.back().name != expert.layer) layers.push_back({expert.layer, {}});
    layers.back().experts.push_back(expert);
  }
  return layers;
}

/// One number of every expert.
struct strip {
  struct column {
    std::string_view head;
    std::function<std::optional<double>(const rounded_expert&)> value;
  };
  double most;  ///< what has the darkest colour
  std::function<std::optional<double>(const rounded_expert&)> value;
  std::function<std::string(double)> text, short_text;  ///< the number alone, and in a cell
  std::vector<column> columns;                          ///< numbers of a layer, beside the cells

  /// From (x, y) on, `width` wide; `bottom` becomes where it ends.
  std::string draw(const std::vector<rounded_layer>& layers, double x, double y, double width, double& bottom) const {
    constexpr double font = 11;
    double names = 0;
    index_t experts = 1;
    for (const rounded_layer& layer : layers) {
      names = std::max(names, shared::text_width(layer.name, font));
      for (const rounded_expert& e : layer.experts) experts = std::max(experts, e.expert + 1);
    }
    const double left = x + names + 12,
                 across = width - names - 12 - static_cast<double>(columns.size()) * column_width;
    const double cell = across / static_cast<double>(experts), height = layers.size() > 32 ? 14 : 20;
    const auto column_end = [&](std::size_t c) {
      return left + across + static_cast<double>(c + 1) * column_width - 4;
    };
    std::string out = svg_text(left - 8, y - 8, font, "end", "layer", grey);
    for (std::size_t c = 0; c < columns.size(); ++c)
      out += svg_text(column_end(c), y - 8, font, "end", columns[c].head, grey);
    cells grid;
    std::string above;
    for (std::size_t l = 0; l < layers.size(); ++l) {
      const double top = y + static_cast<double>(l) * height, base = top + height / 2 + 4;
      out += svg_text(left - 8, base, font, "end", layers[l].name);
      for (const rounded_expert& e : layers[l].experts) {
        const double at = left + static_cast<double>(e.expert) * cell;
        const std::optional<double> number = value(e);
        if (number) {
          grid.add(e.expert, static_cast<index_t>(l), *number / most);
          above += cell_number(at, top, cell, height, *number / most, short_text(*number));
        } else {
          out += svg_rectangle(at, top, cell, height, no_number) + "/>\n";
        }
        above += svg_rectangle(at, top, cell, height, "transparent") + "><title>" +
                 shared::xml_escaped(e.layer + ", expert " + std::to_string(e.expert) + ": " +
                                     (number ? text(*number) : "no calibration token")) +
                 "</title></rect>\n";
      }
      const rounded_expert all = sum_of(layers[l].experts, layers[l].name);
      for (std::size_t c = 0; c < columns.size(); ++c)
        if (const auto number = columns[c].value(all)) out += svg_text(column_end(c), base, font, "end", text(*number));
    }
    bottom = y + static_cast<double>(layers.size()) * height;
    out += grid.text(left, y, cell, height) + svg_rectangle(left, y, across, bottom - y, "none") + std::string(border) +
           "/>\n" + above;
    const index_t step = label_step(cell, shared::text_width(std::to_string(experts), font) + 8, experts);
    for (index_t e = 0; e < experts; e += step)
      out += svg_text(left + (static_cast<double>(e) + 0.5) * cell, bottom + 15, font, "middle", std::to_string(e));
    out += svg_text(left + across / 2, bottom + 32, 12, "middle", "expert", grey);
    bottom += 36;
    return out;
  }

  static constexpr std::string_view no_number = itself_colour;
  static constexpr double column_width = 84;
};

/// The colours of the formats that are there, and what they come to.
inline std::string format_legend(const std::vector<rounded_layer>& layers, double most, double x, double y) {
  std::vector<std::pair<std::string, rounded_expert>> formats;
  for (const rounded_layer& layer : layers)
    for (const rounded_expert& e : layer.experts) {
      auto found = std::find_if(formats.begin(), formats.end(), [&](const auto& f) { return f.first == e.format; });
      if (found == formats.end()) found = formats.insert(found, {e.format, {.layer = "", .format = e.format}});
      found->second.add(e);
      ++found->second.expert;
    }
  std::sort(formats.begin(), formats.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::string out;
  for (const auto& [name, all] : formats) {
    const std::string words = name + ", " + shared::fixed(all.bits(), 2) +
                              " bits a weight with its scales: " + shared::grouped(all.expert) +
                              (all.expert == 1 ? " expert" : " experts");
    out += svg_rectangle(x, y, 12, 12, shared::hex(shared::scale_colour(all.bits() / most))) + std::string(border) +
           "/>\n" + svg_text(x + 20, y + 10, 12, "start", words, grey);
    x += 20 + shared::text_width(words, 12) + 20;
  }
  return out;
}

}  // namespace detail

/// The picture of one expert or more.
inline std::string quantize_picture(const std::vector<rounded_expert>& experts, bool is_calibrated,
                                    std::string_view title, std::string_view subtitle) {
  using namespace detail;
  constexpr double margin = 36, width = 1120, inside = width - 2 * margin, most_bits = 12;
  const std::vector<rounded_layer> layers = by_layer(experts);
  double y = margin + 20;
  std::string body = svg_text(margin, y, 24, "start", title, "font-weight=\"bold\"");
  for (const auto& line : shared::wrapped(subtitle, 14, inside))
    body += svg_text(margin, y += 21, 14, "start", line, "fill=\"#3d4550\"");

  const auto begin = [&](std::string_view name) {
    body += svg_text(margin, y += 42, 16, "start", name, "font-weight=\"bold\"");
    y += 18;
  };
  begin("Bits a weight");
  body += format_legend(layers, most_bits, margin, y);
  const auto bits_of = [](const rounded_expert& e) { return std::optional(e.bits()); };
  const auto bits = [](double number) { return shared::fixed(number, 2); };
  body += strip{most_bits, bits_of, bits, bits, {{"of the layer", bits_of}}}.draw(
      layers, margin, y + 44, is_calibrated ? inside - strip::column_width : inside, y);  // experts below one another

  using error_member = relative_error rounded_expert::*;
  const auto errors = [&](std::string_view name, std::string_view meaning, error_member done, error_member nearest) {
    const auto value_of = [](error_member error) {
      return [error](const rounded_expert& e) {
        return (e.*error).whole > 0 ? std::optional((e.*error).value()) : std::nullopt;
      };
    };
    double most = 0;
    for (const rounded_expert& e : experts) most = std::max(most, (e.*done).value());
    const scale colours(100 * most);
    std::vector<strip::column> columns{{"of the layer", value_of(done)}};
    if (is_calibrated) columns.push_back({"if to nearest", value_of(nearest)});
    begin(name);
    body += colours.legend(margin, y, 1, " %", meaning);
    body += strip{colours.most / 100, value_of(done), [](double v) { return shared::percent(v, 2); },
                  [](double v) { return shared::fixed(100 * v, v < 0.0995 ? 1 : 0); }, std::move(columns)}
                .draw(layers, margin, y + 58, inside, y);
  };
  if (is_calibrated)
    errors("Error of outputs",
           "of the size of an expert's output, on its calibration tokens (in percent; grey: it has none)",
           &rounded_expert::outputs, &rounded_expert::nearest_outputs);
  errors("Error of weights", "of the size of an expert's weights (in percent)", &rounded_expert::weights,
         &rounded_expert::nearest_weights);
  return shared::svg_picture(width, y + margin, title, body);
}

}  // namespace checkpoint
