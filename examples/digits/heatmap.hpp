/// Draws which expert sees which digit: one heat map a router, digits as rows, experts as columns, as one SVG.
///
/// The shares of a row sum to 100 %. All maps have one colour scale, so that they can be compared. An expert's number
/// means nothing, so the columns are ordered by the digit that an expert favours; where a router specialises, a
/// diagonal appears.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "result.hpp"
#include "shared.hpp"
#include "table.hpp"

namespace digits {

namespace detail {

/// Experts by the digit that they get more of than other experts do; those that got nothing come last.
inline std::vector<Eigen::Index> column_order(const Eigen::MatrixXd& share) {
  std::vector<std::pair<Eigen::Index, double>> favourite;  // the digit, and minus its part of what the expert gets
  for (Eigen::Index e = 0; e < share.cols(); ++e) {
    Eigen::Index digit = 0;
    double total = 0;
    for (Eigen::Index d = 0; d < share.rows(); ++d) {
      if (share(d, e) > share(digit, e)) digit = d;
      total += share(d, e);
    }
    favourite.emplace_back(total > 0 ? digit : share.rows(), total > 0 ? -share(digit, e) / total : 0);
  }
  std::vector<Eigen::Index> order(favourite.size());
  std::iota(order.begin(), order.end(), Eigen::Index{0});
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) {
    return favourite[static_cast<std::size_t>(a)] < favourite[static_cast<std::size_t>(b)];
  });
  return order;
}

struct panel_layout {
  double left = 46, top = 54, width = 248, height = 220;  // of the map within the panel
  double right = 14, bottom = 44;

  double panel_width() const { return left + width + right; }
  double panel_height() const { return top + height + bottom; }
};

/// One router's map with its titles and axes; (x, y) is the panel's corner, `most` the share at the dark end of the
/// scale.
inline std::string panel(const result& r, double x, double y, double most, const panel_layout& at) {
  constexpr std::string_view grey = "fill=\"#5b6470\"";
  const double left = x + at.left, top = y + at.top, middle = left + at.width / 2;
  const auto experts = static_cast<double>(r.share.cols()), rows = static_cast<double>(r.share.rows());
  const double cell_width = at.width / experts, cell_height = at.height / rows;
  const double title = std::min(15.0, 15.0 * (at.width + at.right) / text_width(r.title, 16));
  std::string out =
      svg_text(left, y + 20, title, "start", r.title, "font-weight=\"bold\"") +
      svg_text(left, y + 41, 12, "start",
               percent(r.accuracy, 1) + " correct, " + fixed(r.experts_per_token, 1) + " experts a token", grey);

  const auto order = column_order(r.share);
  for (Eigen::Index d = 0; d < r.share.rows(); ++d) {
    const double cell_y = top + static_cast<double>(d) * cell_height;
    out += svg_text(left - 8, cell_y + cell_height / 2 + 4.5, 12, "end", std::to_string(d));
    for (std::size_t c = 0; c < order.size(); ++c) {
      const double share = r.share(d, order[c]), cell_x = left + static_cast<double>(c) * cell_width;
      const colour fill = scale_colour(share / most);
      const std::string& name = r.experts[static_cast<std::size_t>(order[c])];
      out += svg_rectangle(cell_x, cell_y, cell_width, cell_height, hex(fill)) + "><title>" +
             xml_escaped("digit " + std::to_string(d) + ", expert " + name + ": " + percent(share, 1)) +
             "</title></rect>\n";
      const std::string text = fixed(100 * share, 0);
      if (text_width("100", 11) <= cell_width)
        out += svg_cell_text(cell_x + cell_width / 2, cell_y + cell_height / 2, 11, text, fill);
    }
  }
  out += svg_rectangle(left, top, at.width, at.height, "none") + " stroke=\"#8d96a1\"/>\n";

  std::size_t longest = 1;
  for (const auto& name : r.experts) longest = std::max(longest, name.size());
  const double wanted = text_width(std::string(longest, '0'), 11) + 4;
  const auto step = static_cast<std::size_t>(std::ceil(wanted / cell_width));  // a label on every step-th column
  for (std::size_t c = 0; c < order.size(); c += step)
    out += svg_text(left + (static_cast<double>(c) + 0.5) * cell_width, top + at.height + 16, 11, "middle",
                    r.experts[static_cast<std::size_t>(order[c])]);
  const double label_y = top + at.height / 2;
  return out + svg_text(middle, top + at.height + 34, 12, "middle", "expert", grey) +
         svg_text(x + 20, label_y, 12, "middle", "digit",
                  std::string(grey) + " transform=\"rotate(-90 " + number(x + 20) + " " + number(label_y) + ")\"");
}

/// The legend's numbers are multiples of this share.
inline double tick_step(double most) { return most > 0.5 ? 0.2 : 0.1; }

/// The colour scale with its numbers, from 0 to `most`, a multiple of the step.
inline std::string legend(double x, double y, double most) {
  constexpr double width = 300, height = 14;
  std::string out = colour_bar(x, y, width, height);
  const auto ticks = std::lround(most / tick_step(most));
  for (long i = 0; i <= ticks; ++i) {
    const double part = static_cast<double>(i) / static_cast<double>(ticks);
    out += svg_text(x + width * part, y + height + 16, 12, "middle", number(100 * most * part) + " %");
  }
  return out + svg_text(x + width + 26, y + 12, 13, "start", "of a digit's routed weight goes to this expert");
}

}  // namespace detail

/// The picture of all results that have a map (the dense baseline has none).
inline std::string heatmap(const std::vector<result>& results) {
  using namespace detail;
  std::vector<const result*> shown;
  double most = 0.1;
  for (const result& r : results)
    if (r.share.size() > 0) {
      shown.push_back(&r);
      most = std::max(most, r.share.maxCoeff());
    }
  most = std::ceil(most / tick_step(most) - 1e-9) * tick_step(most);  // so that the legend's numbers are round

  constexpr double margin = 36, gap = 22, text_size = 15, least_width = 760;
  const panel_layout layout;
  const auto columns = std::clamp<std::size_t>(shown.size(), 1, 4);
  const std::size_t rows = (shown.size() + columns - 1) / columns;
  const double grid = static_cast<double>(columns) * (layout.panel_width() + gap) - gap;
  const double width = std::max(least_width, 2 * margin + grid);

  const auto lines = wrapped(
      "Each row is a digit, each column an expert, and the darker a cell, the larger the part of that digit's image "
      "patches that "
      "the router gives to this expert (a row adds up to 100 %), so a dark spot is an expert that has specialised, and "
      "an even "
      "row is a digit that all experts share; columns are ordered by the digit that an expert favours.",
      text_size, width - 2 * margin);
  double y = margin + 20;
  std::string body =
      svg_text(margin, y, 25, "start", "Which expert sees which handwritten digit?", "font-weight=\"bold\"");
  y += 10;
  for (const auto& line : lines) body += svg_text(margin, y += 22, text_size, "start", line, "fill=\"#3d4550\"");
  y += 22;
  body += legend(margin + 14, y, most);
  y += 56;
  for (std::size_t i = 0; i < shown.size(); ++i)
    body += panel(*shown[i], (width - grid) / 2 + static_cast<double>(i % columns) * (layout.panel_width() + gap),
                  y + static_cast<double>(i / columns) * (layout.panel_height() + gap), most, layout);
  const double height = y + static_cast<double>(rows) * (layout.panel_height() + gap) - gap + margin / 2;

  return svg_picture(width, height, "Which expert sees which handwritten digit?", body);
}

}  // namespace digits
