// What fuzz targets ask of the library.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace sluice::test {

/// What a fuzzer reports as a crash, with the line that asked for it.
inline void demand(bool condition, int line = __builtin_LINE()) {
  if (condition) return;
  std::fprintf(stderr, "line %d: not so\n", line);
  std::abort();
}

}  // namespace sluice::test
