/// What was compressed as one picture: rate against error for every structure, and what its codes look like.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "../shared/plot.hpp"
#include "../shared/svg.hpp"
#include "../shared/text.hpp"
#include "subjects.hpp"

namespace codebooks {

struct outcome {
  subject of;
  measured m;
};

namespace detail {

using shared::circle, shared::fixed, shared::line, shared::number, shared::numbered_points, shared::svg_text;

inline constexpr double page_width = 1180, margin = 40;

/// A colour a kind, told apart with any colour blindness (Okabe and Ito 2008), dark enough for white numbers.
inline std::string colour_of(const std::string& kind) {
  static const std::vector<std::pair<std::string, std::string>> colours{
      {"one codebook", "#0072b2"}, {"several codebooks", "#d55e00"}, {"no table", "#00795a"}};
  for (const auto& [name, colour] : colours)
    if (name == kind) return colour;
  return "#1b2127";
}

inline std::string rate_against_error(const std::vector<outcome>& all, double top, double height) {
  const double left = margin + 55, right = page_width - margin - 10, bottom = top + height - 45;
  double most_bits = 0, most = 0, least = 1;
  for (const outcome& o : all) {
    most_bits = std::max(most_bits, o.m.bits);
    most = std::max(most, o.m.error);
    least = std::min(least, o.m.error);
  }
  most = std::min(1.0, most * 1.1), least = std::max(0.0, least * 0.9), most_bits *= 1.06;
  const auto x_of = [&](double bits) { return left + (right - left) * bits / most_bits; };
  const auto y_of = [&](double error) {
    return bottom - (bottom - top) * (std::clamp(error, least, most) - least) / (most - least);
  };
  std::string out = svg_text(margin, top - 22, 15, "start", "Rate against error", "font-weight=\"bold\"");
  const double step = most - least > 0.4 ? 0.1 : most - least > 0.15 ? 0.05 : 0.01;
  for (double v = std::ceil(least / step) * step; v <= most + 1e-9; v += step)
    out += line(left, y_of(v), right, y_of(v), "#e3e6ea") +
           svg_text(left - 8, y_of(v) + 4, 11, "end", fixed(100 * v, 0) + " %");
  const double bit_step = most_bits > 80 ? 16 : most_bits > 30 ? 8 : most_bits > 12 ? 4 : 1;
  for (double v = 0; v <= most_bits; v += bit_step)
    out += line(x_of(v), top, x_of(v), bottom, "#e3e6ea") + svg_text(x_of(v), bottom + 17, 11, "middle", number(v));
  out += svg_text((left + right) / 2, bottom + 36, 12, "middle", "bits a vector");
  out += "<g transform=\"rotate(-90 " + number(margin - 6) + " " + number((top + bottom) / 2) + ")\">" +
         svg_text(margin - 6, (top + bottom) / 2, 12, "middle", "variance lost on test vectors") + "</g>\n";
  numbered_points points;
  for (std::size_t i = 0; i < all.size(); ++i)
    out += points.draw(x_of(all[i].m.bits), y_of(all[i].m.error), static_cast<int>(i) + 1, colour_of(all[i].of.kind));
  return out;
}

/// A code as a picture of pixels; dark is much.
inline std::string pixels(const float* code, const vectors& shape, double x, double y, double size) {
  const double pixel = size / static_cast<double>(shape.side);
  std::string out;
  for (index_t p = 0; p < shape.side * shape.side; ++p) {
    const auto part = [&](index_t channel) {
      return std::clamp(static_cast<double>(code[p * shape.channels + std::min(channel, shape.channels - 1)]), 0.0,
                        1.0);
    };
    const bool ink = shape.channels == 1;
    const shared::colour c{ink ? 1 - part(0) : part(0), ink ? 1 - part(0) : part(1), ink ? 1 - part(0) : part(2)};
    out += shared::svg_rectangle(x + pixel * static_cast<double>(p % shape.side),
                                 y + pixel * static_cast<double>(p / shape.side), pixel + 0.1, pixel + 0.1,
                                 shared::hex(c)) +
           "/>\n";
  }
  return out;
}

inline constexpr double row_height = 46, code_size = 24;

/// A line a structure: its numbers, and some of its codes.
inline std::string rows(const std::vector<outcome>& all, const vectors& shape, double top) {
  const double name = margin + 26, bits = 400, error = 480, used = 570, codes = 600;
  std::string out;
  const auto head = [&](double x, std::string_view anchor, std::string_view first) {
    out += svg_text(x, top - 10, 11, anchor, first, "font-weight=\"bold\"");
  };
  head(name, "start", "quantiser, inside a linear autoencoder");
  head(bits, "end", "bits");
  head(error, "end", "lost");
  head(used, "end", "codes in use");
  if (shape.side > 0) head(codes, "start", "what its codes decode to, the most used first");
  for (std::size_t i = 0; i < all.size(); ++i) {
    const outcome& o = all[i];
    const double y = top + row_height * static_cast<double>(i), text = y + row_height / 2 + 4;
    if (i % 2 == 0) out += shared::svg_rectangle(margin, y, page_width - 2 * margin, row_height, "#f5f6f8") + "/>\n";
    out += circle(margin + 12, text - 4, numbered_points::radius, colour_of(o.of.kind)) +
           svg_text(margin + 12, text - 0.6, 9.5, "middle", std::to_string(i + 1),
                    "fill=\"#ffffff\" font-weight=\"bold\"") +
           svg_text(name, text, 12, "start", o.of.title) + svg_text(bits, text, 12, "end", fixed(o.m.bits, 1)) +
           svg_text(error, text, 12, "end", fixed(100 * o.m.error, 1) + " %") +
           svg_text(used, text, 12, "end", fixed(100 * o.m.used, 0) + " %");
    if (shape.side == 0) continue;
    const auto fit = static_cast<index_t>((page_width - margin - codes) / (code_size + 4));
    for (index_t c = 0; c < std::min(fit, o.m.pictures.rows()); ++c)
      out += pixels(o.m.pictures.data() + c * o.m.pictures.cols(), shape,
                    codes + (code_size + 4) * static_cast<double>(c), y + (row_height - code_size) / 2, code_size);
  }
  return out;
}

}  // namespace detail

inline std::string picture(const std::vector<outcome>& all, const vectors& shape, const std::string& about) {
  using namespace detail;
  std::string body =
      svg_text(margin, 38, 20, "start", "Codebooks: what vectors cost and what is lost", "font-weight=\"bold\"") +
      svg_text(margin, 60, 12, "start", about);
  double x = margin;
  for (const char* kind : {"one codebook", "several codebooks", "no table"}) {
    body += circle(x + 6, 80, 6, colour_of(kind)) + svg_text(x + 17, 84, 12, "start", kind);
    x += 40 + shared::text_width(kind, 11.5);
  }
  const double rows_top = 142 + 430 + 42;
  body += rate_against_error(all, 142, 430) + rows(all, shape, rows_top);
  return shared::svg_picture(page_width, rows_top + row_height * static_cast<double>(all.size()) + 30,
                             "Bits and error of every structure of codebooks, and pictures of codes", body);
}

}  // namespace codebooks
