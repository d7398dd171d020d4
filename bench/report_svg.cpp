// roofline.svg: the share of its roofline that each implementation reaches, one panel a shape and routing.
#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "report.hpp"
#include "svg.hpp"
#include "text.hpp"

namespace bench {

namespace {

struct series {
  std::string_view implementation, words, colour, more;
  double width, radius;
};

/// Colours that stay apart for colour-blind readers. The last one is drawn on top.
constexpr std::array<series, 5> all_series{{
    {"naive", "naive loop", "#9aa3ad", "", 1.5, 3},
    {"dense", "dense layer of equal FLOP", "#aa7bc3", " stroke-dasharray=\"5 4\"", 1.5, 3},
    {"eigen", "Eigen loop", "#e08214", "", 1.8, 3.4},
    {"onednn", "oneDNN sgemm loop", "#1b9e77", "", 1.8, 3.4},
    {"sluice", "sluice", "#1f4e9c", "", 3, 4.6},
}};

constexpr std::string_view grey = " fill=\"#5b6470\"";
constexpr double panel_width = 290, panel_height = 250, plot_left = 44, plot_top = 50, plot_width = 232,
                 plot_height = 160;

struct panel {
  std::string name, routing, title, subtitle;
  std::vector<std::int64_t> counts;
};

std::vector<std::int64_t> counts_of(const session& s, const std::string& name, const std::string& routing) {
  std::vector<std::int64_t> counts;
  for (const record& r : s.found.cases)
    if (r.name == name && r.routing == routing && r.threads == s.asked.threads && r.implementation == "sluice" &&
        r.dtype == "float32")
      counts.push_back(r.tokens);
  std::sort(counts.begin(), counts.end());
  return counts;
}

std::vector<panel> panels_of(const session& s) {
  std::vector<panel> panels;
  const auto add = [&](const shape& on, const std::string& suffix, const std::string& routing,
                       const std::string& words) {
    panel p{on.name + suffix, routing, on.title, words, counts_of(s, on.name + suffix, routing)};
    if (!p.counts.empty()) panels.push_back(std::move(p));
  };
  for (const shape& on : published_shapes()) add(on, "", "uniform", "routed evenly");
  for (const shape& on : published_shapes()) add(on, "", "zipf_planned", "planned by Zipf's law");
  for (const shape& on : published_shapes()) add(on, "_cached", "uniform", "cache-resident, routed evenly");
  return panels;
}

std::string draw(const session& s, const panel& p, double x, double y, double most) {
  const double left = x + plot_left, bottom = y + plot_top + plot_height;
  const auto at_x = [&](std::size_t i) {
    return left + plot_width * (static_cast<double>(i) + 0.5) / static_cast<double>(p.counts.size());
  };
  const auto at_y = [&](double share) { return bottom - plot_height * std::min(share, most) / most; };
  std::string out = svg::text(left, y + 18, 14, "start", p.title, " font-weight=\"bold\"") +
                    svg::text(left, y + 36, 12, "start", p.subtitle, grey);
  for (int tick = 0; tick <= std::lround(most * 5); ++tick) {
    const double share = tick / 5.0;
    out += svg::line(left, at_y(share), left + plot_width, at_y(share), tick == 5 ? "#5b6470" : "#e1e5ea", 1) +
           svg::text(left - 6, at_y(share) + 4, 11, "end", fixed(100 * share, 0) + " %", grey);
  }
  for (std::size_t i = 0; i < p.counts.size(); ++i)
    out += svg::text(at_x(i), bottom + 16, 11, "middle", std::to_string(p.counts[i]));
  out += svg::text(left + plot_width / 2, bottom + 32, 11, "middle", "tokens", grey);

  for (const series& implementation : all_series) {
    std::vector<std::pair<double, const record*>> points;
    for (std::size_t i = 0; i < p.counts.size(); ++i)
      if (const auto* r =
              find(s.found.cases, p.name, p.counts[i], p.routing, implementation.implementation, s.asked.threads))
        points.emplace_back(at_x(i), r);
    for (std::size_t i = 1; i < points.size(); ++i)
      out += svg::line(points[i - 1].first, at_y(points[i - 1].second->roofline_fraction()), points[i].first,
                       at_y(points[i].second->roofline_fraction()), implementation.colour, implementation.width,
                       implementation.more);
    for (const auto& [point, r] : points) {
      const double share = r->roofline_fraction();
      out += svg::dot(point, at_y(share), implementation.radius, implementation.colour,
                      std::string(implementation.words) + ", " + std::to_string(r->tokens) +
                          " tokens: " + percent(share) + ", " + milliseconds(r->median) + " ms");
      if (implementation.implementation == "sluice")  // its number, with a white edge so that lines do not cross it
        out += svg::text(
            point, at_y(share) - 9, 11, "middle", fixed(100 * share, 0),
            " fill=\"#1f4e9c\" font-weight=\"bold\" stroke=\"#ffffff\" stroke-width=\"3\" paint-order=\"stroke\"");
    }
  }
  return out;
}

std::string legend(const session& s, double x, double y) {
  std::string out;
  for (auto it = all_series.rbegin(); it != all_series.rend(); ++it) {
    const bool present = std::any_of(s.found.cases.begin(), s.found.cases.end(),
                                     [&](const record& r) { return r.implementation == it->implementation; });
    if (!present) continue;
    out += svg::line(x, y, x + 26, y, it->colour, it->width, it->more) +
           svg::dot(x + 13, y, it->radius, it->colour, it->words) + svg::text(x + 33, y + 4, 13, "start", it->words);
    x += 62 + 7.2 * static_cast<double>(it->words.size());
  }
  return out;
}

}  // namespace

std::string roofline_svg(const session& s, const facts& environment) {
  const std::vector<panel> panels = panels_of(s);
  double most = 1;
  for (const record& r : s.found.cases)
    for (const panel& p : panels)
      if (r.name == p.name && r.routing == p.routing) most = std::max(most, std::min(1.4, r.roofline_fraction()));
  most = std::ceil(most * 5 - 1e-9) / 5;

  constexpr double margin = 30, gap = 14, least_width = 860;
  const auto columns = std::clamp<std::size_t>(panels.size(), 1, 4);
  const std::size_t rows = (panels.size() + columns - 1) / columns;
  const double width = std::max(least_width, 2 * margin + static_cast<double>(columns) * (panel_width + gap) - gap);
  std::string machine;
  for (const auto& [name, value] : environment)
    if (name == "processor" || name == "xsimd architecture") machine.append(value).append(", ");

  constexpr std::string_view title = "How near to the machine's limit?";
  double y = margin + 16;
  std::string body = svg::text(margin, y, 23, "start", title, " font-weight=\"bold\"");
  y += 6;
  const std::string words =
      "Share of the roofline in a forward pass, float32, " + std::to_string(s.asked.threads) +
      (s.asked.threads == 1 ? " thread" : " threads") +
      ". 100 % is the least time that arithmetic, or reading the weights once, allows on this machine: " + machine +
      fixed(s.all.gflops, 0) + " GFLOP/s, " + fixed(s.all.memory, 1) +
      " GB/s from memory, both measured in the same process.";
  for (const std::string& line : svg::wrapped(words, 14, width - 2 * margin))
    body += svg::text(margin, y += 20, 14, "start", line, grey);
  body += legend(s, margin, y += 28);
  y += 22;
  for (std::size_t i = 0; i < panels.size(); ++i)
    body += draw(s, panels[i], margin - 12 + static_cast<double>(i % columns) * (panel_width + gap),
                 y + static_cast<double>(i / columns) * (panel_height + gap), most);
  if (panels.empty()) body += svg::text(margin, y + 20, 14, "start", "No forward pass was measured in this run.");
  const double height = y + std::max(40.0, static_cast<double>(rows) * (panel_height + gap) - gap) + margin / 2;
  return shared::svg_picture(width, height, title, body);
}

}  // namespace bench
