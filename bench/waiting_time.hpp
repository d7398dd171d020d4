/// How long this program had to wait for a processor that others used.
#pragma once

#include <fstream>
#include <optional>

namespace bench {

/// Seconds that the main thread was ready to run and did not, since it began. Nothing where the system does not say (only
/// Linux does).
inline std::optional<double> read_waiting_time() {
  std::ifstream statistics("/proc/self/schedstat");
  double running = 0, waiting = 0;  // nanoseconds
  if (!(statistics >> running >> waiting)) return std::nullopt;
  return waiting * 1e-9;
}

}  // namespace bench
