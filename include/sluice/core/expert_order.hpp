/// The order of a plan: assignments by expert, those of one expert as they were added.
///
///   n assignments, expert_of(i) in 0 .. E - 1    place(i): where assignment i goes    source(p): which one goes to place p
///
/// Found in one of two ways, to the same result: with a counter for every expert, or, where experts are many more than
/// assignments, by sorting digit by digit. The latter takes time and memory for the assignments alone.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/expert_rows.hpp>

#include <algorithm>
#include <bit>
#include <numeric>
#include <utility>

namespace sluice::inline SLUICE_ISA {

class expert_order {
public:
  /// Of no assignments, and no experts.
  void clear() noexcept {
    active_.clear();
    offsets_.clear();
  }

  /// Makes room for any order of up to so many assignments.
  void reserve(index_t most, index_t experts) {
    for (auto* numbers : {&place_, &source_}) numbers->reserve(most);
    const index_t most_active = (std::min)(most, experts);
    active_.reserve(most_active);
    offsets_.reserve(most_active + 1);
    // Fewer assignments may be sorted, which needs less than counting those does.
    counter_.reserve(is_sparse(most, experts) ? index_t(1) << digit_bits(most) : experts);
  }

  template <typename ExpertOf>
  void find(index_t n, index_t experts, const ExpertOf& expert_of) {
    reserve(n, experts);
    for (auto* numbers : {&place_, &source_}) numbers->resize(n);
    clear();
    if (is_sparse(n, experts))
      sort(experts, expert_of);
    else
      count(experts, expert_of);
    offsets_.push_back(n);
    counter_.clear();
  }

  index_t place(index_t i) const noexcept { return place_[i]; }
  index_t source(index_t p) const noexcept { return source_[p]; }

  /// In place of find(), for who has assignments in order already: experts ascend, each with the place of its first.
  void begin_experts(index_t experts) {
    active_.reserve(experts);
    offsets_.reserve(experts + 1);
    clear();
  }
  void begin_expert(index_t expert, index_t place) {
    active_.push_back(expert);
    offsets_.push_back(place);
  }
  void end_experts(index_t n) { offsets_.push_back(n); }

  /// Whose places are whose.
  expert_rows rows(index_t experts) const noexcept {
    return offsets_.empty() ? expert_rows() : expert_rows(experts, active_.span(), offsets_.span());
  }

private:
  /// Whether assignments are too few for a counter of every expert. Sixteen counters take the memory of one assignment.
  static bool is_sparse(index_t assignments, index_t experts) noexcept { return experts / 16 > assignments; }

  /// About as many buckets as assignments, of which the second cache has room for a couple of thousand.
  static int digit_bits(index_t n) noexcept { return std::clamp(static_cast<int>(std::bit_width(as_size(n))), 4, 11); }

  template <typename ExpertOf>
  void count(index_t experts, const ExpertOf& expert_of) {
    counter_.assign(experts, 0);
    for (index_t i = 0; i < place_.size(); ++i) ++counter_[expert_of(i)];
    index_t next = 0;
    for (index_t e = 0; e < experts; ++e) {
      const index_t load = counter_[e];
      if (load > 0) begin_expert(e, next);
      counter_[e] = next;
      next += load;
    }
    for (index_t i = 0; i < place_.size(); ++i) {
      place_[i] = counter_[expert_of(i)]++;
      source_[place_[i]] = i;
    }
  }

  /// Digits from the lowest on, each pass keeping the order of the one before.
  template <typename ExpertOf>
  void sort(index_t experts, const ExpertOf& expert_of) {
    const index_t n = source_.size();
    std::iota(source_.begin(), source_.end(), index_t(0));
    const int bits = digit_bits(n);
    for (int shift = 0; (experts - 1) >> shift != 0; shift += bits) {
      const auto digit = [&](index_t i) { return (expert_of(i) >> shift) & ((index_t(1) << bits) - 1); };
      counter_.assign(index_t(1) << bits, 0);
      for (const index_t i : source_) ++counter_[digit(i)];
      index_t next = 0;
      for (index_t& c : counter_) next += std::exchange(c, next);
      for (const index_t i : source_) place_[counter_[digit(i)]++] = i;
      std::swap(place_, source_);
    }
    for (index_t p = 0; p < n; ++p) {
      const index_t expert = expert_of(source_[p]);
      if (p == 0 || expert != expert_of(source_[p - 1])) begin_expert(expert, p);
      place_[source_[p]] = p;
    }
  }

  buffer<index_t> active_;   ///< experts that have assignments, ascending
  buffer<index_t> offsets_;  ///< the first place of each of them, and n
  buffer<index_t> counter_;  ///< of each expert, or of each digit
  buffer<index_t> place_;
  buffer<index_t> source_;
};

}  // namespace sluice::inline SLUICE_ISA
