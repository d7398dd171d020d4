/// Group-limited selection: only the experts of the best groups may be chosen.
///
///   E experts in n equal contiguous groups; a group's score is its best expert's score (DeepSeek-V2) or the sum of its
///   two best (DeepSeek-V3); the experts of all but `kept` groups cannot be chosen; then top-k of the others
///   evenly: each of the kept groups gives its own k / kept best; one group after the other, in a group the best first
///
/// The others may have any score: negative, -infinity and NaN (which counts as -infinity) are still chosen before an
/// expert of a group that is not kept. Published inference code does not exclude those experts but sets what they are
/// compared by to 0, so that they come before negative (biased) scores: unkept::score_of_zero does the same, for runs
/// that have to agree with such code. Evenly and with all groups kept, k is chosen group by group, as by a router for
/// each: the heads of SwitchHead (attention/routed_value_attention.hpp). Equal scores: the lower group, the lower
/// expert. DeepSeek-AI 2024, arXiv:2405.04434 and arXiv:2412.19437.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/kernel/top_k.hpp>

namespace sluice::inline SLUICE_ISA {

struct group_limit {
  enum class group_score { best, sum_of_two };
  enum class unkept { excluded, score_of_zero };

  index_t groups = 1;
  index_t kept = 1;
  group_score score = group_score::best;
  unkept others = unkept::excluded;  ///< experts of groups that are not kept
  bool evenly = false;               ///< whether every kept group gives as many

  friend bool operator==(const group_limit&, const group_limit&) = default;

  bool limits() const noexcept { return groups > 1; }

  /// Throws std::invalid_argument unless k experts can be had from `kept` of `groups` equal groups.
  void validate(index_t experts, index_t k) const {
    if (groups < 1 || kept < 1 || kept > groups || experts % groups != 0)
      throw_invalid("group limit needs E divisible by the groups and 1 <= kept <= groups, not E = ", experts,
                    ", groups = ", groups, ", kept = ", kept);
    if (limits() && score == group_score::sum_of_two && experts / groups < 2)
      throw_invalid("groups of ", experts / groups, " expert have no two best");
    if (limits() && k > kept * (experts / groups))
      throw_invalid("k = ", k, " experts cannot come from ", kept, " groups of ", experts / groups);
    if (limits() && evenly && k % kept != 0)
      throw_invalid("k = ", k, " experts cannot come evenly from ", kept, " groups");
  }

  template <typename Scalar>
  Scalar score_of(const Scalar* scores, index_t size) const {
    index_t best[2] = {0, 0};
    kernel::top_k(scores, size, score == group_score::best ? index_t(1) : index_t(2), best);
    return score == group_score::best ? scores[best[0]] : scores[best[0]] + scores[best[1]];
  }

  /// True if group g is among the kept best.
  template <typename Scalar>
  bool keeps(const Scalar* scores, index_t experts, index_t g) const {
    const index_t size = experts / groups;
    const auto own = order_key(score_of(scores + g * size, size));
    index_t better = 0;
    for (index_t other = 0; other < groups; ++other) {
      const auto key = order_key(score_of(scores + other * size, size));
      better += key > own || (key == own && other < g);
    }
    return better < kept;
  }

  /// ids[0..k): the k best experts under the limit, best first. scratch [E]. Needs what validate(E, k) demands.
  template <typename Scalar>
  void top_k(const Scalar* scores, Scalar* scratch, index_t experts, index_t k, index_t* ids) const {
    const index_t size = experts / groups;
    const Scalar* kept_groups = mark_kept(scores, scratch, size);
    if (evenly) {
      for (index_t g = 0; g < groups; ++g) {
        if (kept_groups[g] == Scalar(0)) continue;
        kernel::top_k(scores + g * size, size, k / kept, ids);
        for (index_t j = 0; j < k / kept; ++j) *ids++ += g * size;
      }
      return;
    }
    const bool at_zero = others == unkept::score_of_zero;
    const auto key = [&](index_t e) {
      return order_key(at_zero && kept_groups[e / size] == Scalar(0) ? Scalar(0) : scores[e]);
    };
    index_t found = 0;
    for (index_t g = 0; g < groups; ++g) {
      if (kept_groups[g] == Scalar(0) && !at_zero) continue;
      for (index_t e = g * size; e < (g + 1) * size; ++e) {
        const auto own = key(e);
        if (found == k && own <= key(ids[k - 1])) continue;
        index_t place = found < k ? found++ : k - 1;
        for (; place > 0 && own > key(ids[place - 1]); --place) ids[place] = ids[place - 1];
        ids[place] = e;
      }
    }
  }

private:
  /// One flag a group: 1 if it is kept. Group scores and flags share the scratch, which has room for both where groups
  /// have two experts or more; a group of one expert needs no score of its own.
  template <typename Scalar>
  const Scalar* mark_kept(const Scalar* scores, Scalar* scratch, index_t size) const {
    const Scalar* group_scores = scores;
    Scalar* flags = scratch;
    if (size > 1) {
      for (index_t g = 0; g < groups; ++g) scratch[g] = score_of(scores + g * size, size);
      group_scores = scratch;
      flags = scratch + groups;
    }
    for (index_t g = 0; g < groups; ++g) {
      const auto own = order_key(group_scores[g]);
      index_t better = 0;
      for (index_t other = 0; other < groups; ++other) {
        const auto theirs = order_key(group_scores[other]);
        better += theirs > own || (theirs == own && other < g);
      }
      flags[g] = better < kept ? Scalar(1) : Scalar(0);
    }
    return flags;
  }
};

}  // namespace sluice::inline SLUICE_ISA
