/// The sizes of this machine's caches, as Google Benchmark reads them from the system.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>

namespace bench {

struct cache_sizes {
  std::int64_t l2 = 1 << 20;   ///< of one core; a usual size where the system does not say
  std::int64_t l3 = 32 << 20;  ///< of all cores that share it
};

inline cache_sizes read_cache_sizes() {
  cache_sizes sizes;
  std::int64_t last_level = 0;
  for (const auto& cache : benchmark::CPUInfo::Get().caches) {
    if (cache.type == "Instruction") continue;
    if (cache.level == 2) sizes.l2 = cache.size;
    if (cache.level >= 2) last_level = std::max<std::int64_t>(last_level, cache.size);
  }
  if (last_level > 0) sizes.l3 = last_level;
  return sizes;
}

}  // namespace bench
