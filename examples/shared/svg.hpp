/// Elements of an SVG picture as text.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "colour.hpp"
#include "text.hpp"

namespace shared {

inline std::string xml_escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else if (static_cast<unsigned char>(c) >= 0x20)
      out += c;
  }
  return out;
}

inline std::string number(double value) {
  std::string text = fixed(value, 1);
  return text.ends_with(".0") ? text.substr(0, text.size() - 2) : text;
}

/// Text whose baseline starts, ends or is centred at (x, y). `more` are further attributes.
inline std::string svg_text(double x, double y, double size, std::string_view anchor, std::string_view text,
                            std::string_view more = "") {
  return "<text x=\"" + number(x) + "\" y=\"" + number(y) + "\" font-size=\"" + number(size) + "\" text-anchor=\"" +
         std::string(anchor) + "\"" + (more.empty() ? "" : " ") + std::string(more) + ">" + xml_escaped(text) +
         "</text>\n";
}

inline std::string svg_rectangle(double x, double y, double width, double height, std::string_view fill) {
  return "<rect x=\"" + number(x) + "\" y=\"" + number(y) + "\" width=\"" + number(width) + "\" height=\"" +
         number(height) + "\" fill=\"" + std::string(fill) + "\"";
}

/// A number in the middle of a cell of this colour: dark on light, white on dark. The mouse sees the cell.
inline std::string svg_cell_text(double x, double y, double size, std::string_view text, const colour& cell) {
  return svg_text(x, y + 0.36 * size, size, "middle", text,
                  luminance(cell) < 0.36 ? "fill=\"#ffffff\" pointer-events=\"none\"" : "pointer-events=\"none\"");
}

/// A guess that holds for the usual sans-serif fonts; the widest of them is DejaVu Sans.
inline double text_width(std::string_view text, double size) { return 0.6 * size * static_cast<double>(text.size()); }

inline std::vector<std::string> wrapped(std::string_view text, double size, double width) {
  std::vector<std::string> lines(1);
  while (!text.empty()) {
    const std::string word(text.substr(0, text.find(' ')));
    text.remove_prefix(std::min(text.size(), word.size() + 1));
    if (!lines.back().empty() && text_width(lines.back() + " " + word, size) > width) lines.emplace_back();
    (lines.back() += lines.back().empty() ? "" : " ") += word;
  }
  return lines;
}

/// The colour scale from its light end on the left to its dark end.
inline std::string colour_bar(double x, double y, double width, double height) {
  constexpr int stops = 20;
  std::string out = "<defs><linearGradient id=\"scale\">\n";
  for (int i = 0; i <= stops; ++i)
    out += "<stop offset=\"" + fixed(static_cast<double>(i) / stops, 2) + "\" stop-color=\"" +
           hex(scale_colour(static_cast<double>(i) / stops)) + "\"/>\n";
  return out + "</linearGradient></defs>\n" + svg_rectangle(x, y, width, height, "url(#scale)") +
         " stroke=\"#8d96a1\"/>\n";
}

/// The whole picture, on white.
inline std::string svg_picture(double width, double height, std::string_view title, std::string_view body) {
  return "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" +
         number(width) + "\" height=\"" + number(height) + "\" viewBox=\"0 0 " + number(width) + " " + number(height) +
         "\" font-family=\"'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif\" "
         "fill=\"#1b2127\" role=\"img\">\n<title>" +
         xml_escaped(title) + "</title>\n" + svg_rectangle(0, 0, width, height, "#ffffff") + "/>\n" +
         std::string(body) + "</svg>\n";
}

}  // namespace shared
