/// Elements of an SVG picture as text.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "../examples/shared/svg.hpp"

namespace bench::svg {

using shared::number;

inline std::string attribute(std::string_view name, std::string_view value) {
  std::string out(1, ' ');
  return out.append(name).append("=\"").append(shared::xml_escaped(value)).append("\"");
}

/// Text whose baseline starts, ends or is centred at (x, y). `more` are further attributes.
inline std::string text(double x, double y, double size, std::string_view anchor, std::string_view words,
                        std::string_view more = "") {
  return "<text" + attribute("x", number(x)) + attribute("y", number(y)) + attribute("font-size", number(size)) +
         attribute("text-anchor", anchor) + std::string(more) + ">" + shared::xml_escaped(words) + "</text>\n";
}

inline std::string line(double x1, double y1, double x2, double y2, std::string_view colour, double width,
                        std::string_view more = "") {
  return "<line" + attribute("x1", number(x1)) + attribute("y1", number(y1)) + attribute("x2", number(x2)) +
         attribute("y2", number(y2)) + attribute("stroke", colour) + attribute("stroke-width", number(width)) +
         std::string(more) + "/>\n";
}

/// A dot that says `hint` when pointed at.
inline std::string dot(double x, double y, double radius, std::string_view colour, std::string_view hint) {
  return "<circle" + attribute("cx", number(x)) + attribute("cy", number(y)) + attribute("r", number(radius)) +
         attribute("fill", colour) + " stroke=\"#ffffff\" stroke-width=\"1\"><title>" + shared::xml_escaped(hint) +
         "</title></circle>\n";
}

/// Lines no wider than `width`, by a guess that holds for the usual sans-serif fonts.
inline std::vector<std::string> wrapped(std::string_view words, double size, double width) {
  std::vector<std::string> lines(1);
  while (!words.empty()) {
    const std::string_view word = words.substr(0, words.find(' '));
    words.remove_prefix(std::min(words.size(), word.size() + 1));
    const auto length = static_cast<double>(lines.back().size() + 1 + word.size());
    if (!lines.back().empty() && 0.58 * size * length > width) lines.emplace_back();
    if (!lines.back().empty()) lines.back() += ' ';
    lines.back() += word;
  }
  return lines;
}

}  // namespace bench::svg
