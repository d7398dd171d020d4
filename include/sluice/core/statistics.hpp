/// Counters that every forward call keeps: how many tokens each expert got, how many were dropped.
///
/// They live in the workspace or tape, never in the layer, and are always on. Padding tokens are not counted.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/soft_plan.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/core/types.hpp>

#include <cmath>
#include <concepts>

namespace sluice::inline SLUICE_ISA {

struct routing_statistics {
  index_t calls = 0;
  index_t tokens = 0;       ///< without padding
  index_t assignments = 0;  ///< rows that experts worked on
  index_t dropped = 0;      ///< assignments that a capacity limit refused
  buffer<index_t> load;     ///< assignments of each expert

  void clear() noexcept {
    calls = tokens = assignments = dropped = 0;
    load.fill(0);
  }

  double experts_per_token() const noexcept {
    return tokens == 0 ? 0 : static_cast<double>(assignments) / static_cast<double>(tokens);
  }

  /// Standard deviation of the load over its mean: 0 is perfect balance, sqrt(E - 1) is everything at one expert.
  double load_cv() const noexcept {
    if (load.empty() || assignments == 0) return 0;
    const double mean = static_cast<double>(assignments) / static_cast<double>(load.size());
    double sum = 0;
    for (const index_t n : load) sum += (static_cast<double>(n) - mean) * (static_cast<double>(n) - mean);
    return std::sqrt(sum / static_cast<double>(load.size())) / mean;
  }

  template <typename Plan>
  void count(const Plan& plan, index_t padding) {
    if (load.size() != plan.experts()) load.assign(plan.experts(), 0);
    ++calls;
    tokens += plan.tokens() - padding;
    assignments += plan.rows();
    if constexpr (requires { plan.dropped(); }) dropped += static_cast<index_t>(plan.dropped().size());
    const auto offsets = plan.offsets();
    for (std::size_t e = 0; e + 1 < offsets.size(); ++e) load[static_cast<index_t>(e)] += offsets[e + 1] - offsets[e];
  }
};

}  // namespace sluice::inline SLUICE_ISA
