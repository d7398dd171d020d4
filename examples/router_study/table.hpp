/// The closing table, for people and as CSV.
#pragma once

#include <algorithm>
#include <locale>
#include <ostream>
#include <sstream>
#include <string>
#include <vector>

#include "../shared/text.hpp"
#include "study.hpp"

namespace study {

inline void print_table(std::ostream& out, const std::vector<outcome>& routers) {
  using shared::fixed, shared::percent;
  std::vector<std::vector<std::string>> rows{{"", "router", "digits", "+-", "experts/token", "kFLOP/token", "load CV",
                                              "no expert", "still changes", "clusters", "entropy", "s/run"}};
  int number = 0;
  for (const outcome& o : routers) {
    const auto flops = mean(o.digits, [](const measured& m) { return m.flops; });
    const auto dropped = mean(o.digits, [](const measured& m) { return m.dropped; });
    const auto changed = mean(o.digits, [](const measured& m) { return m.last().changed; });
    const auto seconds = mean(o.digits, [](const measured& m) { return m.seconds; }) +
                         mean(o.clusters, [](const measured& m) { return m.seconds; });
    rows.push_back({std::to_string(++number), o.of.name, percent(accuracy(o.digits), 2),
                    fixed(100 * accuracy_deviation(o.digits), 2), fixed(experts_per_token(o.digits), 2),
                    fixed(flops / 1000, 1), fixed(load_cv(o.digits), 2), percent(dropped, 1), percent(changed, 1),
                    percent(accuracy(o.clusters), 1), fixed(entropy(o.clusters), 2), fixed(seconds, 1)});
  }
  shared::print_columns(out, rows, 1);
}

/// A row a training. Shares are 0..1, and a decimal point is a point in every locale.
inline std::string csv(const std::vector<outcome>& routers, std::uint64_t first_seed) {
  std::ostringstream out;
  out.imbue(std::locale::classic());
  out << "router,task,seed,accuracy,experts_per_token,flops_per_token,load_cv,without_expert,still_changes,entropy\n";
  for (const outcome& o : routers)
    for (const auto* runs : {&o.digits, &o.clusters})
      for (std::size_t i = 0; i < runs->size(); ++i) {
        const measured& m = (*runs)[i];
        out << o.of.name << ',' << (runs == &o.digits ? "digits" : "clusters") << ',' << first_seed + i << ','
            << m.accuracy << ',' << m.last().experts_per_token << ',' << m.flops << ',' << m.last().load_cv << ','
            << m.dropped << ',' << m.last().changed << ',' << m.last().entropy << '\n';
      }
  return out.str();
}

}  // namespace study
