/// What was trained as one picture: how the kinds learned, what they reached for what a byte costs, and a line a kind.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "report.hpp"
#include "shared/plot.hpp"
#include "shared/svg.hpp"
#include "shared/text.hpp"

namespace language_model {

namespace detail {

using shared::circle, shared::fixed, shared::line, shared::number, shared::numbered_points, shared::svg_text;

inline constexpr double page_width = 1180, margin = 40;

/// A colour a group, told apart with any colour blindness (Okabe and Ito 2008), dark enough for white numbers.
inline std::string colour_of(const std::string& group) {
  static const std::vector<std::pair<std::string, std::string>> colours{
      {"no mixture", "#333a42"}, {"feed-forward", "#0072b2"}, {"attention", "#d55e00"}, {"both", "#00795a"}};
  for (const auto& [name, colour] : colours)
    if (name == group) return colour;
  return "#b3548c";
}

/// A frame with a scale of bits on its left side.
struct panel {
  double left, right, top, bottom, low, high;

  double y_of(double bits) const {
    return bottom - (bottom - top) * (std::clamp(bits, low, high) - low) / (high - low);
  }

  std::string scale() const {
    const double range = high - low, step = range > 3     ? 1
                                            : range > 1.2 ? 0.5
                                            : range > 0.5 ? 0.1
                                            : range > 0.2 ? 0.05
                                                          : 0.01;
    std::string out;
    for (double v = std::ceil(low / step - 1e-9) * step; v <= high + 1e-9; v += step)
      out += line(left, y_of(v), right, y_of(v), "#e3e6ea") + svg_text(left - 8, y_of(v) + 4, 11, "end", fixed(v, 2));
    return out;
  }
  std::string titles(const std::string& above, const std::string& below) const {
    return svg_text(left - 40, top - 22, 15, "start", above, "font-weight=\"bold\"") +
           svg_text((left + right) / 2, bottom + 38, 12, "middle", below);
  }
};

/// Means over as many pieces as a curve has room for.
inline std::vector<double> thinned(const std::vector<float>& curve, std::size_t most) {
  const std::size_t pieces = std::min(most, curve.size());
  std::vector<double> means;
  for (std::size_t p = 0; p < pieces; ++p) {
    const std::size_t begin = p * curve.size() / pieces, end = (p + 1) * curve.size() / pieces;
    double sum = 0;
    for (std::size_t i = begin; i < end; ++i) sum += static_cast<double>(curve[i]);
    means.push_back(sum / static_cast<double>(end - begin));
  }
  return means;
}

inline std::string curves(const std::vector<outcome>& all, index_t bytes_a_step, double top, double height) {
  constexpr std::size_t pieces = 40;
  panel p{margin + 45, 640, top, top + height - 55, 1e30, 0};
  double steps = 1;
  std::vector<std::vector<double>> lines;
  for (const outcome& o : all) {
    lines.push_back(thinned(o.curve, pieces));
    steps = std::max(steps, static_cast<double>(o.curve.size()));
    // The first pieces fall from the 8 bits of chance; what matters lies below.
    p.high = std::max(p.high, lines.back()[std::min<std::size_t>(lines.back().size() - 1, 3)]);
    p.low = std::min(p.low, *std::min_element(lines.back().begin(), lines.back().end()));
  }
  p.low = std::floor(p.low * 10) / 10, p.high = std::max(p.low + 0.1, std::ceil(p.high * 10) / 10);
  std::string out =
      p.titles("How they learned: bits a byte of the text of a step, before it", "thousand bytes read") + p.scale();
  const double bytes = steps * static_cast<double>(bytes_a_step) / 1000;
  for (int i = 0; i <= 4; ++i)
    out += svg_text(p.left + (p.right - p.left) * i / 4, p.bottom + 17, 11, "middle", number(bytes * i / 4));
  numbered_points ends;
  for (std::size_t k = 0; k < all.size(); ++k) {
    std::string points;
    for (std::size_t i = 0; i < lines[k].size(); ++i) {
      const double along = (static_cast<double>(i) + 0.5) / static_cast<double>(lines[k].size()) *
                           static_cast<double>(all[k].curve.size()) / steps;
      if (lines[k][i] <= p.high)
        points += number(p.left + (p.right - p.left) * along) + "," + number(p.y_of(lines[k][i])) + " ";
    }
    out += "<polyline points=\"" + points + "\" fill=\"none\" stroke=\"" + colour_of(all[k].of.group) +
           "\" stroke-width=\"1.5\"/>\n";
  }
  for (std::size_t k = 0; k < all.size(); ++k)
    out += ends.draw(p.right + 14, p.y_of(lines[k].back()), static_cast<int>(k) + 1, colour_of(all[k].of.group));
  return out;
}

inline std::string bits_against_parameters(const std::vector<outcome>& all, double top, double height) {
  panel p{770, page_width - margin - 10, top, top + height - 55, 1e30, 0};
  double least = 1e30, most = 0;
  for (const outcome& o : all) {
    p.low = std::min(p.low, o.bits);
    p.high = std::max(p.high, o.bits);
    least = std::min(least, o.active.parameters);
    most = std::max(most, o.active.parameters);
  }
  const double room = std::max(0.02, 0.12 * (p.high - p.low));
  p.low -= room, p.high += room;
  least *= 0.95, most *= 1.05;
  const auto x_of = [&](double parameters) {
    return p.left + (p.right - p.left) * (parameters - least) / (most - least);
  };
  std::string out =
      p.titles("What they reached: validation, bits a byte", "thousand parameters that a byte meets") + p.scale();
  for (int i = 0; i <= 4; ++i)
    out += svg_text(p.left + (p.right - p.left) * i / 4, p.bottom + 17, 11, "middle",
                    fixed((least + (most - least) * i / 4) / 1000, 0));
  if (const outcome* const dense = reference_of(all))
    for (const double share : {1.0, 0.98})
      if (const double v = dense->bits * share; v > p.low)
        out += line(p.left, p.y_of(v), p.right, p.y_of(v), "#8d96a1", 1) +
               svg_text(p.left + 4, p.y_of(v) - 4, 10.5, "start", share == 1.0 ? "dense" : "2 % below dense");
  numbered_points points;
  for (std::size_t k = 0; k < all.size(); ++k)
    out += points.draw(x_of(all[k].active.parameters), p.y_of(all[k].bits), static_cast<int>(k) + 1,
                       colour_of(all[k].of.group));
  return out;
}

inline constexpr double row_height = 23;

inline std::string rows(const std::vector<outcome>& all, double top) {
  using shared::grouped;
  const double name = margin + 26, parameters = 600, active = 720, flops = 850, bits = 945, against = 1060,
               seconds = 1135;
  std::string out;
  const auto head = [&](double x, std::string_view anchor, std::string_view text) {
    out += svg_text(x, top - 10, 11, anchor, text, "font-weight=\"bold\"");
  };
  head(name, "start", "kind");
  head(parameters, "end", "parameters");
  head(active, "end", "active a byte");
  head(flops, "end", "kFLOP a byte");
  head(bits, "end", "bits a byte");
  head(against, "end", "against dense");
  head(seconds, "end", "seconds");
  for (std::size_t k = 0; k < all.size(); ++k) {
    const outcome& o = all[k];
    const double y = top + row_height * static_cast<double>(k), text = y + row_height / 2 + 4;
    if (k % 2 == 0) out += shared::svg_rectangle(margin, y, page_width - 2 * margin, row_height, "#f5f6f8") + "/>\n";
    out +=
        circle(margin + 12, text - 4, numbered_points::radius, colour_of(o.of.group)) +
        svg_text(margin + 12, text - 0.6, 9.5, "middle", std::to_string(k + 1),
                 "fill=\"#ffffff\" font-weight=\"bold\"") +
        svg_text(name, text, 12, "start", o.of.title) + svg_text(parameters, text, 12, "end", grouped(o.parameters)) +
        svg_text(active, text, 12, "end", grouped(static_cast<std::int64_t>(o.active.parameters))) +
        svg_text(flops, text, 12, "end", fixed(o.flops / 1000, 0)) + svg_text(bits, text, 12, "end", fixed(o.bits, 3)) +
        svg_text(against, text, 12, "end", against_dense(o, reference_of(all))) +
        svg_text(seconds, text, 12, "end", fixed(o.seconds, 0));
  }
  return out;
}

}  // namespace detail

inline std::string picture(const std::vector<outcome>& all, index_t bytes_a_step, const std::string& about) {
  using namespace detail;
  std::string body = svg_text(margin, 38, 20, "start", "Language models of bytes whose parts are mixtures of experts",
                              "font-weight=\"bold\"") +
                     svg_text(margin, 60, 12, "start", about);
  double x = margin;
  std::string last;
  for (const outcome& o : all) {
    if (o.of.group == last) continue;
    last = o.of.group;
    const std::string label = last == "no mixture" ? last : "mixture: " + last;
    body += circle(x + 6, 80, 6, colour_of(last)) + svg_text(x + 17, 84, 12, "start", label);
    x += 40 + shared::text_width(label, 11.5);
  }
  const double plots = 142, height = 430, lines = plots + height + 42;
  body += curves(all, bytes_a_step, plots, height) + bits_against_parameters(all, plots, height) + rows(all, lines);
  return shared::svg_picture(page_width, lines + row_height * static_cast<double>(all.size()) + 30,
                             "How kinds of language models learned, and bits a byte against active parameters", body);
}

}  // namespace language_model
