#include "session.hpp"

#include <iostream>
#include <utility>

#include "text.hpp"

namespace bench {

void session::refresh_limits() {
  one.merge(measure_limits(1, caches, asked.smoke));
  if (asked.threads > 1) all.merge(measure_limits(asked.threads, caches, asked.smoke));
  all.merge(one);  // on a busy machine one thread may have read faster than all of them
}

void apply_limits(session& s) {
  for (record& r : s.found.cases) r.least = roofline(r.done, s.limits_of(r.threads), r.level);
}

bool session::wants(const std::string& name) const {
  return asked.filter.empty() || name.find(asked.filter) != std::string::npos;
}

void session::race(const std::string& title, const std::vector<contestant>& contestants, records rows) {
  const std::vector<timing> times = run.race(title, contestants);
  if (!asked.quiet) std::cerr << title << ':';
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i].median = times[i].median;
    rows[i].fastest = times[i].fastest;
    rows[i].repetitions = times[i].repetitions;
    if (!asked.quiet) std::cerr << "  " << contestants[i].name << ' ' << milliseconds(times[i].median) << " ms";
    found.cases.push_back(std::move(rows[i]));
  }
  if (!asked.quiet) std::cerr << std::endl;
}

}  // namespace bench
