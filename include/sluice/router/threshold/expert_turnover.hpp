/// Experts that come and go while training (DynMoE): what is recorded, when, and what changed.
///
///   record   activations [E]: how often each expert was chosen;   unserved [D]: sum of the tokens that nobody wanted
///   rule     every live expert that was never chosen goes (but one always stays); then, if some token was unserved and
///            a place is free, the lowest free place gets an expert that points to unserved / |unserved|
///
/// Time is counted in training steps modulo a period: recording starts at step `start` and the change comes after
/// `window` steps more. Published: 900, 300, 300. Guo et al. 2024, arXiv:2405.14297.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/choices.hpp>
#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <limits>
#include <span>

namespace sluice::inline SLUICE_ISA {

/// What was seen since the last clear(). Records of several tapes or machines add up.
template <FloatOrDouble Scalar>
struct turnover_record {
  index_t tokens = 0;
  buffer<index_t> activations;
  buffer<Scalar> unserved;

  void clear() noexcept {
    tokens = 0;
    activations.clear();
    unserved.clear();
  }

  /// Makes room where there is none; a record of other sizes is forgotten.
  void prepare(index_t experts, index_t width) {
    if (activations.size() == experts && unserved.size() == width) return;
    tokens = 0;
    activations.assign(experts, 0);
    unserved.assign(width, Scalar(0));
  }

  /// Of the sum of unserved tokens.
  Scalar length() const { return std::sqrt(kernel::dot(unserved.data(), unserved.data(), unserved.size())); }

  /// Throws std::invalid_argument if both have seen tokens and their sizes differ.
  void add(const turnover_record& other) {
    if (other.tokens == 0) return;
    if (tokens != 0 && (activations.size() != other.activations.size() || unserved.size() != other.unserved.size()))
      throw_invalid("records of E = ", activations.size(), " and E = ", other.activations.size(), " do not add up");
    prepare(other.activations.size(), other.unserved.size());
    tokens += other.tokens;
    for (index_t e = 0; e < activations.size(); ++e) activations[e] += other.activations[e];
    for (index_t d = 0; d < unserved.size(); ++d) unserved[d] += other.unserved[d];
  }
};

/// What a change of experts did. A place may be emptied and given away in one change.
struct expert_change {
  buffer<index_t> removed;
  index_t added = no_expert;  ///< an optimiser should forget what it knows of this expert

  void clear() noexcept {
    removed.clear();
    added = no_expert;
  }
};

/// Applies the rule to the live mask [E] of 0 and 1, and writes what it did over `change`.
template <std::floating_point Scalar>
void turn_over(const turnover_record<Scalar>& record, std::span<Scalar> live, expert_change& change) {
  change.clear();
  auto left = std::count_if(live.begin(), live.end(), [](Scalar is_live) { return is_live != Scalar(0); });
  for (std::size_t e = 0; e < live.size() && left > 1; ++e) {
    if (live[e] == Scalar(0) || record.activations[static_cast<index_t>(e)] != 0) continue;
    live[e] = 0;
    change.removed.push_back(static_cast<index_t>(e));
    --left;
  }
  const auto key = order_key(record.length());  // of infinity and NaN nothing can be made
  const auto free = std::find(live.begin(), live.end(), Scalar(0));
  if (key <= order_key(Scalar(0)) || key > order_key((std::numeric_limits<Scalar>::max)()) || free == live.end())
    return;
  *free = 1;
  change.added = free - live.begin();
}

struct turnover_schedule {
  index_t period = 0;  ///< 0: everything is recorded and nothing changes by itself
  index_t start = 0;
  index_t window = 0;

  /// Throws std::invalid_argument unless 0 <= start, 1 <= window and start + window <= period.
  void validate() const {
    if (period < 0 || (period > 0 && (start < 0 || window < 1 || start + window > period)))
      throw_invalid("a period of ", period, " steps has no window of ", window, " steps from step ", start);
  }
  bool records(index_t step) const noexcept { return period == 0 || (step >= start && step < start + window); }
  bool starts(index_t step) const noexcept { return step == start; }
  bool ends(index_t step) const noexcept { return step == (start + window) % period; }
};

}  // namespace sluice::inline SLUICE_ISA
