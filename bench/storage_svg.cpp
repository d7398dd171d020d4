// storages.svg: how many times as fast as with float32 a layer is with its weights in each storage, a cell for every number of tokens.
#include <algorithm>
#include <string>
#include <vector>

#include "report.hpp"
#include "svg.hpp"
#include "text.hpp"

namespace bench {

namespace {

constexpr double most_gain = 10;  // the darkest cell

bool is_rounded(const session& s, const record& r) {
  return r.implementation == "sluice" && r.routing == "uniform" && r.threads == s.asked.threads && r.dtype != "float32";
}

template <typename T>
void add_once(std::vector<T>& list, const T& value) {
  if (std::find(list.begin(), list.end(), value) == list.end()) list.push_back(value);
}

}  // namespace

std::string storage_svg(const session& s) {
  std::vector<std::string> names, storages;
  std::vector<std::int64_t> counts;
  for (const record& r : s.found.cases)
    if (is_rounded(s, r)) add_once(names, r.name), add_once(storages, r.dtype), add_once(counts, r.tokens);
  std::sort(counts.begin(), counts.end());
  constexpr double cell_width = 62, cell_height = 30, left = 170, margin = 30;
  constexpr std::string_view grey = " fill=\"#5b6470\"";
  constexpr std::string_view title = "What do fewer bits buy?";
  const double width = std::max(860.0, left + cell_width * static_cast<double>(counts.size()) + margin);
  double y = margin + 16;
  std::string body = svg::text(margin, y, 23, "start", title, " font-weight=\"bold\"");
  y += 6;
  const std::string words =
      "How many times as fast as with weights of float32 the same layer is, routed evenly, " + std::to_string(s.asked.threads) +
      (s.asked.threads == 1 ? " thread" : " threads") +
      ", by tokens. Weights are decoded to floats, or, where a storage is called 8-bit, and for int8, activations are rounded to 8 "
      "bits too. Below the gain: the share of its roofline in per cent.";
  for (const std::string& line : svg::wrapped(words, 14, width - 2 * margin))
    body += svg::text(margin, y += 20, 14, "start", line, grey);
  y += 14;
  if (names.empty()) body += svg::text(margin, y += 16, 14, "start", "No storages were measured in this run.");
  for (const std::string& name : names) {
    body += svg::text(margin, y += 28, 14, "start", name, " font-weight=\"bold\"");
    for (std::size_t i = 0; i < counts.size(); ++i)
      body += svg::text(left + cell_width * (static_cast<double>(i) + 0.5), y, 12, "middle", std::to_string(counts[i]), grey);
    y += 8;
    for (const std::string& storage : storages) {
      body += svg::text(left - 10, y + 0.62 * cell_height, 12, "end", storage);
      for (std::size_t i = 0; i < counts.size(); ++i) {
        const auto* full = find(s.found.cases, name, counts[i], "uniform", "sluice", s.asked.threads);
        const auto* rounded = find(s.found.cases, name, counts[i], "uniform", "sluice", s.asked.threads, storage);
        if (full == nullptr || rounded == nullptr) continue;
        const double gain = full->median / rounded->median, share = gain / most_gain;
        const double x = left + cell_width * static_cast<double>(i);
        const std::string_view ink = share > 0.5 ? " fill=\"#ffffff\"" : "";
        body += shared::svg_rectangle(x + 1, y + 1, cell_width - 2, cell_height - 2, shared::hex(shared::scale_colour(share))) +
                "/>\n" + svg::text(x + cell_width / 2, y + 13, 13, "middle", significant(gain), ink) +
                svg::text(x + cell_width / 2, y + 25, 10, "middle", percent(rounded->roofline_fraction()), ink);
      }
      y += cell_height;
    }
  }
  return shared::svg_picture(width, y + margin, title, body);
}

}  // namespace bench
