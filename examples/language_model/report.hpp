/// What was trained as a table, for people and as CSV.
#pragma once

#include <locale>
#include <ostream>
#include <sstream>
#include <string>
#include <vector>

#include "kinds.hpp"
#include "shared/text.hpp"

namespace language_model {

struct outcome {
  kind of;
  index_t parameters = 0;
  cost active{};
  double flops = 0;            ///< forward, a byte
  double bits = 0;             ///< a byte of the validation text
  double seconds = 0;          ///< of training
  std::vector<float> curve{};  ///< bits a byte of the text of each step
};

/// Of the dense model, if it was trained; else null.
inline const outcome* reference_of(const std::vector<outcome>& all) {
  for (const outcome& o : all)
    if (o.of.name == "dense") return &o;
  return nullptr;
}

/// How far its bits lie above those of the dense model, as a share of these; "" where there is nothing to compare.
inline std::string against_dense(const outcome& o, const outcome* dense) {
  if (dense == nullptr || dense->of.name == o.of.name) return "";
  const double share = o.bits / dense->bits - 1;
  return (share > 0 ? "+" : "") + shared::percent(share, 1);
}

inline void print_table(std::ostream& out, const std::vector<outcome>& all) {
  using shared::fixed, shared::grouped;
  std::vector<std::vector<std::string>> rows{
      {"", "kind", "parameters", "active", "kFLOP/byte", "bits/byte", "vs dense", "seconds"}};
  for (std::size_t i = 0; i < all.size(); ++i) {
    const outcome& o = all[i];
    rows.push_back({std::to_string(i + 1), o.of.name, grouped(o.parameters),
                    grouped(static_cast<std::int64_t>(o.active.parameters)), fixed(o.flops / 1000, 0), fixed(o.bits, 3),
                    against_dense(o, reference_of(all)), fixed(o.seconds, 1)});
  }
  shared::print_columns(out, rows, 1);
}

/// A row a kind; a decimal point is a point in every locale. Times are left out, so that equal runs give equal files.
inline std::string csv(const std::vector<outcome>& all) {
  std::ostringstream out;
  out.imbue(std::locale::classic());
  out.precision(9);
  out << "kind,parameters,active_parameters,flops_per_byte,bits_per_byte\n";
  for (const outcome& o : all)
    out << o.of.name << ',' << o.parameters << ',' << o.active.parameters << ',' << o.flops << ',' << o.bits << '\n';
  return out.str();
}

}  // namespace language_model
