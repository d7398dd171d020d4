/// The study as one picture: accuracy against cost, a line a router (accuracy, load, how its routing sorts itself), the
/// papers' claims.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "../shared/plot.hpp"
#include "../shared/svg.hpp"
#include "../shared/text.hpp"
#include "claims.hpp"
#include "study.hpp"

namespace study {

namespace detail {

using shared::circle, shared::fixed, shared::line, shared::number, shared::numbered_points, shared::svg_text;

inline constexpr double page_width = 1180, margin = 40;

/// A colour a room, told apart with any colour blindness (Okabe and Ito 2008), dark enough for white numbers.
inline std::string colour_of(const std::string& room) {
  static const std::vector<std::pair<std::string, std::string>> colours{
      {"tokens choose", "#0072b2"}, {"threshold", "#d55e00"},     {"experts choose", "#00795a"},
      {"assigned", "#7a5200"},      {"masked", "#b3548c"},        {"fixed", "#555555"},
      {"every expert", "#8c2d04"},  {"over training", "#5b3fa0"},
  };
  for (const auto& [name, colour] : colours)
    if (name == room) return colour;
  return "#1b2127";
}

/// Accuracy on the digits against the arithmetic of the mixture, a numbered disc a router.
inline std::string scatter(const std::vector<outcome>& routers, double top, double height) {
  const double left = margin + 55, right = page_width - margin - 10, bottom = top + height - 45;
  const auto flops = [](const outcome& o) { return mean(o.digits, [](const measured& m) { return m.flops; }) / 1000; };
  double least = 1e30, most = 0;
  std::vector<double> accuracies;
  for (const outcome& o : routers) {
    least = std::min(least, flops(o));
    most = std::max(most, flops(o));
    accuracies.push_back(100 * accuracy(o.digits));
  }
  std::sort(accuracies.begin(), accuracies.end());
  // The few that learn badly shall not squeeze all others: they stand on the lower edge, with their numbers.
  const double highest = std::ceil(accuracies.back() * 2) / 2;
  const double low = accuracies[accuracies.size() / 10];
  const double lowest = std::floor(std::min(low, highest - 2) * 2) / 2 - 0.5;
  least /= 1.25, most *= 1.25;
  const auto x_of = [&](double v) { return left + (right - left) * std::log(v / least) / std::log(most / least); };
  const auto y_of = [&](double v) { return bottom - (bottom - top) * (v - lowest) / (highest - lowest); };
  std::string out =
      svg_text(margin, top - 22, 15, "start", "Accuracy on the digits against cost", "font-weight=\"bold\"");
  const double step = highest - lowest > 12 ? 2 : highest - lowest > 6 ? 1 : 0.5;
  for (double v = std::ceil(lowest / step) * step; v <= highest + 1e-9; v += step)
    out +=
        line(left, y_of(v), right, y_of(v), "#e3e6ea") + svg_text(left - 8, y_of(v) + 4, 11, "end", fixed(v, 1) + " %");
  for (double v = std::exp2(std::ceil(std::log2(least))); v <= most; v *= 2)
    out += line(x_of(v), top, x_of(v), bottom, "#e3e6ea") +
           svg_text(x_of(v), bottom + 17, 11, "middle", v < 1 ? fixed(v, 2) : number(v));
  out +=
      svg_text((left + right) / 2, bottom + 36, 12, "middle",
               "arithmetic of gate and experts for a token, in thousands of additions and multiplications (log scale)");
  out += "<g transform=\"rotate(-90 " + number(margin - 6) + " " + number((top + bottom) / 2) + ")\">" +
         svg_text(margin - 6, (top + bottom) / 2, 12, "middle", "correct test images") + "</g>\n";
  numbered_points points;
  for (std::size_t i = 0; i < routers.size(); ++i) {
    const double a = 100 * accuracy(routers[i].digits), x = x_of(flops(routers[i]));
    const bool below = a < lowest;
    out += points.draw(x, below ? bottom - numbered_points::radius : y_of(a), static_cast<int>(i) + 1,
                       colour_of(routers[i].of.room));
    if (below) out += svg_text(x + 12, bottom - 5, 10, "start", fixed(a, 1) + " %");
  }
  return out;
}

/// A polyline through values in [0, most] over the width.
inline std::string spark(const std::vector<double>& values, double x, double y, double width, double height,
                         double most, const std::string& colour) {
  std::string points;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double along = values.size() < 2 ? 0 : static_cast<double>(i) / static_cast<double>(values.size() - 1);
    points += number(x + along * width) + "," + number(y + height * (1 - std::clamp(values[i] / most, 0.0, 1.0))) + " ";
  }
  return "<polyline points=\"" + points + "\" fill=\"none\" stroke=\"" + colour + "\" stroke-width=\"1.6\"/>\n";
}

inline constexpr double row_height = 23;

/// A line a router.
inline std::string rows(const std::vector<outcome>& routers, double top) {
  const double name = margin + 26, digits = 470, load = 500, load_width = 170, clusters = 790, sorted = 815,
               sorted_width = 260;
  const double most_entropy = std::log(4.0);
  double most_load = 0.5;
  for (const outcome& o : routers) most_load = std::max(most_load, load_cv(o.digits));
  const double bottom = top + row_height * static_cast<double>(routers.size());
  std::string out;
  const auto head = [&](double x, std::string_view anchor, std::string_view first, std::string_view second) {
    out +=
        svg_text(x, top - 24, 11, anchor, first, "font-weight=\"bold\"") + svg_text(x, top - 10, 10.5, anchor, second);
  };
  head(name, "start", "router", "colour: its folder in include/sluice/router");
  head(digits, "end", "digits", "correct ± deviation");
  head(load, "start", "load spread on the digits", "deviation / mean of the experts' loads");
  head(clusters, "end", "clusters", "correct");
  head(sorted, "start", "dispatch entropy over training on the clusters",
       "0: an expert a cluster · 1.39: no order · last value");
  for (std::size_t i = 0; i < routers.size(); ++i) {
    const outcome& o = routers[i];
    const double y = top + row_height * static_cast<double>(i), middle = y + row_height / 2, text = middle + 4;
    const std::string colour = colour_of(o.of.room);
    if (i % 2 == 0) out += shared::svg_rectangle(margin, y, page_width - 2 * margin, row_height, "#f5f6f8") + "/>\n";
    out += circle(margin + 12, middle, numbered_points::radius, colour) +
           svg_text(margin + 12, middle + 3.4, 9.5, "middle", std::to_string(i + 1),
                    "fill=\"#ffffff\" font-weight=\"bold\"");
    out += svg_text(name, text, 12, "start", o.of.title);
    out += svg_text(digits, text, 12, "end",
                    fixed(100 * accuracy(o.digits), 1) + " ± " + fixed(100 * accuracy_deviation(o.digits), 1) + " %");
    const double spread = load_cv(o.digits), bar = load_width * spread / most_load;
    out += shared::svg_rectangle(load, y + 6, std::max(bar, 1.0), row_height - 12, colour) +
           " fill-opacity=\"0.75\"/>\n" + svg_text(load + bar + 5, text, 11, "start", fixed(spread, 2));
    out += svg_text(clusters, text, 12, "end", fixed(100 * accuracy(o.clusters), 1) + " %");
    out +=
        line(sorted, y + row_height - 3.5, sorted + sorted_width, y + row_height - 3.5, "#c3c8cf", 0.7) +
        spark(entropy_over_training(o.clusters), sorted, y + 3.5, sorted_width, row_height - 7, most_entropy, colour) +
        svg_text(sorted + sorted_width + 8, text, 11, "start", fixed(entropy(o.clusters), 2));
  }
  return out + line(margin, bottom, page_width - margin, bottom, "#c3c8cf");
}

inline std::string legend(const std::vector<outcome>& routers, double y) {
  std::string out;
  double x = margin;
  std::string last;
  for (const outcome& o : routers) {
    if (o.of.room == last) continue;
    last = o.of.room;
    out += circle(x + 6, y - 4, 6, colour_of(last)) + svg_text(x + 17, y, 12, "start", last);
    x += 40 + shared::text_width(last, 11.5);
  }
  return out;
}

}  // namespace detail

inline std::string picture(const std::vector<outcome>& routers, const std::vector<claim>& claims,
                           const std::string& about) {
  using namespace detail;
  const double scatter_top = 142, scatter_height = 430;
  const double rows_top = scatter_top + scatter_height + 62;
  const double claims_top = rows_top + row_height * static_cast<double>(routers.size()) + 42;
  std::string body =
      svg_text(margin, 38, 20, "start", "Every router of sluice, on two small tasks", "font-weight=\"bold\"") +
      svg_text(margin, 60, 12, "start", about);
  body += legend(routers, 84);
  body += scatter(routers, scatter_top, scatter_height) + rows(routers, rows_top);
  double y = claims_top;
  if (!claims.empty()) body += svg_text(margin, y, 15, "start", "What the papers say", "font-weight=\"bold\"");
  for (const claim& c : claims) {
    y += 22;
    body += svg_text(margin, y, 12, "start", c.holds ? "holds" : "does not hold",
                     c.holds ? "fill=\"#00694e\" font-weight=\"bold\"" : "fill=\"#b3261e\" font-weight=\"bold\"") +
            svg_text(margin + 108, y, 12, "start", c.what + ": " + c.measured);
  }
  return shared::svg_picture(page_width, y + 30, "Accuracy, cost, load and dispatch entropy of every router", body);
}

}  // namespace study
