/// Draws without repetition: of n things the one at floor(u n), or the next that is still there.
#pragma once

#include <sluice/core/buffer.hpp>

#include <algorithm>

namespace sluice::inline SLUICE_ISA {

class distinct_draws {
public:
  /// From now on there are n things, 0 .. n-1, none of them taken.
  void begin(index_t n) { taken_.assign(n, 0); }

  void reserve(index_t n) { taken_.reserve(n); }

  /// For a uniform number in (0, 1). There must be one left.
  index_t take(double u) {
    const index_t n = taken_.size();
    index_t i = (std::min)(static_cast<index_t>(u * static_cast<double>(n)), n - 1);
    while (taken_[i] != 0) i = i + 1 == n ? 0 : i + 1;
    taken_[i] = 1;
    return i;
  }

private:
  buffer<std::uint8_t> taken_;
};

}  // namespace sluice::inline SLUICE_ISA
