/// Counters that every forward call keeps: how many tokens each expert got, how many were dropped.
///
/// They live in the workspace or tape, never in the layer, and are always on. Padding tokens are not counted. Counting
/// and clearing take time for the experts that got tokens only; memory is a number an expert.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/expert_rows.hpp>
#include <sluice/core/soft_plan.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/core/types.hpp>

#include <cmath>
#include <concepts>

namespace sluice::inline SLUICE_ISA {

/// A counter an expert, read like an array.
class expert_counts {
public:
  /// E counters at zero, unless there are E already.
  void resize(index_t experts) {
    if (counts_.size() == experts) return;
    counts_.reserve(experts);
    raised_.resize(experts / list_share);
    counts_.assign(experts, 0);
    raised_count_ = 0;
  }

  void add(index_t expert, index_t n) noexcept {
    if (n == 0) return;
    if (counts_[expert] == 0) {
      if (raised_count_ < raised_.size()) raised_[raised_count_] = expert;
      ++raised_count_;
    }
    counts_[expert] += n;
  }

  /// All to zero, in time that adding has paid for.
  void clear() noexcept {
    if (raised_count_ > raised_.size())
      counts_.fill(0);
    else
      for (index_t i = 0; i < raised_count_; ++i) counts_[raised_[i]] = 0;
    raised_count_ = 0;
  }

  index_t size() const noexcept { return counts_.size(); }
  bool empty() const noexcept { return counts_.empty(); }
  const index_t& operator[](index_t expert) const noexcept { return counts_[expert]; }
  const index_t* begin() const noexcept { return counts_.begin(); }
  const index_t* end() const noexcept { return counts_.end(); }

private:
  /// A list of one counter in sixteen is short; where it is full, clearing all costs little beside having filled it.
  static constexpr index_t list_share = 16;

  buffer<index_t> counts_;
  buffer<index_t> raised_;    ///< counters that are not zero, as far as there is room
  index_t raised_count_ = 0;  ///< how many there are
};

struct routing_statistics {
  index_t calls = 0;
  index_t tokens = 0;       ///< without padding
  index_t assignments = 0;  ///< rows that experts worked on
  index_t dropped = 0;      ///< assignments that a capacity limit refused
  expert_counts load;       ///< assignments of each expert

  void clear() noexcept {
    calls = tokens = assignments = dropped = 0;
    load.clear();
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
    load.resize(plan.experts());
    ++calls;
    tokens += plan.tokens() - padding;
    assignments += plan.rows();
    if constexpr (requires { plan.dropped(); }) dropped += static_cast<index_t>(plan.dropped().size());
    for (const row_range& own : plan.by_expert()) load.add(own.expert, own.size());
  }
};

}  // namespace sluice::inline SLUICE_ISA
