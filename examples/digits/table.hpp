/// The closing table, for people and as CSV.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <locale>
#include <ostream>
#include <sstream>
#include <string>
#include <vector>

#include "result.hpp"
#include "shared.hpp"

namespace digits {

namespace detail {

/// Difference of two shares in percentage points, with its sign.
inline std::string points(double difference) {
  const std::string text = fixed(100 * difference, 2);
  return difference > 0 && text != "0.00" ? "+" + text : text == "-0.00" ? "0.00" : text;
}

}  // namespace detail

/// One row a router, columns aligned; the first row is the baseline that "vs dense" compares with.
inline void print_table(std::ostream& out, const std::vector<result>& results) {
  constexpr std::size_t columns = 9;
  using row = std::array<std::string, columns>;
  using namespace detail;
  const bool spread =
      std::any_of(results.begin(), results.end(), [](const result& r) { return r.accuracy_deviation > 0; });
  std::vector<row> rows = {row{"router", "test accuracy", "vs dense", "experts/token", "load CV", "dropped",
                               "train tokens/s", "parameters", "active"}};
  for (const result& r : results)
    rows.push_back({r.router, percent(r.accuracy, 2) + (spread ? " +- " + fixed(100 * r.accuracy_deviation, 2) : ""),
                    &r == results.data() ? "" : points(r.accuracy - results.front().accuracy),
                    fixed(r.experts_per_token, 2), fixed(r.load_cv, 2), percent(r.dropped, 1),
                    grouped(std::llround(r.tokens_per_second)), grouped(r.parameters), grouped(r.active_parameters)});
  std::array<std::size_t, columns> width{};
  for (const row& r : rows)
    for (std::size_t c = 0; c < columns; ++c) width[c] = std::max(width[c], r[c].size());

  for (const row& r : rows) {
    std::string line = r[0] + std::string(width[0] - r[0].size(), ' ');
    for (std::size_t c = 1; c < columns; ++c) line += std::string(2 + width[c] - r[c].size(), ' ') + r[c];
    out << line << '\n';
    if (&r == rows.data()) out << std::string(line.size(), '-') << '\n';
  }
}

/// How much of the accuracies is chance: they are shares of a finite number of images, of runs with some seeds.
inline std::string accuracy_noise(const std::vector<result>& results, std::int64_t test_images, int seeds) {
  double correct = 0;
  for (const result& r : results) correct += r.accuracy / static_cast<double>(results.size());
  const std::string error =
      fixed(100 * std::sqrt(correct * (1 - correct) / static_cast<double>(test_images)), 2) + " points";
  const std::string images = grouped(test_images) + " images";
  if (seeds == 1)
    return "noise: the standard error of an accuracy, a share of " + images + ", is about " + error +
           "; a smaller difference to dense is none. What the seed adds, --seeds 5 shows.";
  return "noise: +- is the standard deviation over the seeds, so on these images a mean is known to a part of 1/sqrt(" +
         std::to_string(seeds) + ") = " + fixed(1 / std::sqrt(seeds), 2) +
         " of that; on other images the standard error, of a share of " + images + ", is about " + error + ".";
}

/// The same numbers for programs: shares are 0..1, and a decimal point is a point in every locale.
inline std::string csv(const std::vector<result>& results) {
  std::ostringstream out;
  out.imbue(std::locale::classic());
  out << "router,accuracy,experts_per_token,load_cv,dropped,tokens_per_s,parameters,active_parameters\n";
  for (const result& r : results)
    out << r.router << ',' << r.accuracy << ',' << r.experts_per_token << ',' << r.load_cv << ',' << r.dropped << ','
        << std::llround(r.tokens_per_second) << ',' << r.parameters << ',' << r.active_parameters << '\n';
  return out.str();
}

}  // namespace digits
