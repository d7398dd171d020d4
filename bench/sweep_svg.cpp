// sweep.svg: a cell for every D and H, with the share of the machine's peak that a forward pass reaches.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "report.hpp"
#include "svg.hpp"
#include "text.hpp"

namespace bench {

namespace {

constexpr double cell_width = 52, cell_height = 34, left = 96, margin = 30;

/// The sizes that were measured, ascending.
std::vector<index_t> sizes_of(const std::vector<sweep_point>& sweep, index_t sweep_point::* side) {
  std::vector<index_t> sizes;
  for (const sweep_point& p : sweep) sizes.push_back(p.*side);
  std::sort(sizes.begin(), sizes.end());
  sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
  return sizes;
}

}  // namespace

double beside_neighbours(const std::vector<sweep_point>& sweep, const sweep_point& at) {
  const auto inputs = sizes_of(sweep, &sweep_point::inputs), hidden = sizes_of(sweep, &sweep_point::hidden);
  const auto place = [](const std::vector<index_t>& sizes, index_t size) {
    return std::find(sizes.begin(), sizes.end(), size) - sizes.begin();
  };
  double sum = 0, count = 0;
  for (const sweep_point& p : sweep) {
    const auto steps = std::abs(place(inputs, p.inputs) - place(inputs, at.inputs)) +
                       std::abs(place(hidden, p.hidden) - place(hidden, at.hidden));
    if (steps == 1) sum += p.gflops, ++count;
  }
  return count > 0 ? at.gflops / (sum / count) : 1;
}

std::string sweep_svg(const session& s) {
  const auto& sweep = s.found.sweep;
  const auto inputs = sizes_of(sweep, &sweep_point::inputs), hidden = sizes_of(sweep, &sweep_point::hidden);
  const double width = std::max(760.0, left + cell_width * static_cast<double>(inputs.size()) + margin);
  constexpr std::string_view grey = " fill=\"#5b6470\"";
  constexpr std::string_view title = "Does a shape fall off a cliff?";
  double y = margin + 16;
  std::string body = svg::text(margin, y, 23, "start", title, " font-weight=\"bold\"");
  y += 6;
  const std::string words = "Share of the machine's " + fixed(s.all.gflops, 0) +
                            " GFLOP/s, in per cent, that a forward pass of 512 tokens reaches: two experts of SwiGLU, one a "
                            "token, float32, " + std::to_string(s.asked.threads) +
                            (s.asked.threads == 1 ? " thread" : " threads") +
                            ". A red frame: less than 80 % of what its neighbours reach on average.";
  for (const std::string& line : svg::wrapped(words, 14, width - 2 * margin))
    body += svg::text(margin, y += 20, 14, "start", line, grey);
  y += 30;
  if (sweep.empty()) body += svg::text(margin, y, 14, "start", "No sweep was measured in this run.");
  for (std::size_t i = 0; i < inputs.size(); ++i)
    body += svg::text(left + cell_width * (static_cast<double>(i) + 0.5), y, 12, "middle", std::to_string(inputs[i]), grey);
  if (!sweep.empty()) body += svg::text(left - 10, y, 12, "end", "H \\ D", grey);
  y += 8;
  for (std::size_t j = 0; j < hidden.size(); ++j)
    body += svg::text(left - 10, y + cell_height * (static_cast<double>(j) + 0.62), 12, "end", std::to_string(hidden[j]), grey);
  for (const sweep_point& p : sweep) {
    const auto column = static_cast<double>(std::find(inputs.begin(), inputs.end(), p.inputs) - inputs.begin());
    const auto row = static_cast<double>(std::find(hidden.begin(), hidden.end(), p.hidden) - hidden.begin());
    const double share = p.gflops / s.all.gflops;
    const bool is_cliff = beside_neighbours(sweep, p) < 0.8;
    body += shared::svg_rectangle(left + cell_width * column + 1, y + cell_height * row + 1, cell_width - 2, cell_height - 2,
                                  shared::hex(shared::scale_colour(share))) +
            (is_cliff ? " stroke=\"#c0392b\" stroke-width=\"2.5\"" : "") + "/>\n" +
            svg::text(left + cell_width * (column + 0.5), y + cell_height * (row + 0.62), 13, "middle",
                      fixed(100 * share, 0), share > 0.55 ? " fill=\"#ffffff\"" : "");
  }
  const double height = y + cell_height * static_cast<double>(hidden.size()) + margin;
  return shared::svg_picture(width, height, title, body);
}

}  // namespace bench
