#include <iostream>

#include "../shared/text.hpp"
#include "commands.hpp"
#include "differences.hpp"
#include "text_table.hpp"

namespace checkpoint {
namespace {

std::string short_number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", value);
  return text;
}

std::vector<std::string> row_of(const std::string& name, const std::string& shape, const difference& d,
                                const std::string& where) {
  return {name,
          shape,
          short_number(d.largest),
          where,
          short_number(d.mean()),
          short_number(d.relative()),
          std::to_string(d.one_nan),
          std::to_string(d.both_nan)};
}

}  // namespace

bool compare(const compare_options& o) {
  const sluice::safetensors_reader a(o.a), b(o.b);
  std::vector<std::vector<std::string>> rows{
      {"tensor", "shape", "largest", "at element", "mean", "largest / max |a|", "NaN in one", "NaN in both"}};
  difference all;
  for (const tensor_difference& d : differences(a, b)) {
    rows.push_back(row_of(d.name, sluice::detail::shape_text(d.shape), d.found,
                          d.found.largest > 0 ? std::to_string(d.found.where) : "-"));
    all.add(d.found);
  }
  rows.push_back(row_of("all", std::to_string(all.elements) + " elements", all, ""));
  print_aligned(std::cout, rows);
  return o.tolerance < 0 || all.largest <= o.tolerance;
}

}  // namespace checkpoint
