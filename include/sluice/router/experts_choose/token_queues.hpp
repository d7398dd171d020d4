/// The queues of experts that choose: an expert's tokens of a group, those that it takes in front, best first.
///
///   valid [n]       the tokens that may be taken            taken [E]   how many of them each expert takes
///   token(e, c)     the c-th token that expert e takes, c < taken[e]
///
/// The larger score is better, of equals the lower token, NaN is -infinity: the order is total, so what is taken
/// depends on no algorithm and no number of threads. Under a cap (router/experts_choose/token_cap.hpp) a token that too
/// many experts want is left to some of them, and an expert that finds nobody with room takes less. Nothing valid:
/// nobody is taken. Memory grows in prepare() only.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/router/experts_choose/token_cap.hpp>
#include <sluice/router/masked/modality_experts.hpp>

#include <algorithm>

namespace sluice::inline SLUICE_ISA {

/// A token that an expert could take; the better one is less.
template <FloatOrDouble Scalar>
struct token_candidate {
  ordered_bits<Scalar> key;  ///< order_key of the score
  index_t token;

  bool operator<(const token_candidate& other) const noexcept {
    return key != other.key ? key > other.key : token < other.token;
  }
};

template <FloatOrDouble Scalar>
class token_queues {
public:
  buffer<index_t> valid;
  buffer<index_t> taken;

  /// Room for all groups of a batch.
  void prepare(index_t tokens, index_t experts, const token_cap& cap) {
    valid.reserve(tokens);
    taken.resize(experts);
    queue_.resize(experts, tokens);
    if (!cap.limits(experts)) return;
    prices_.reserve(tokens, experts);
    room_.reserve(tokens);
    next_.reserve(experts);
  }

  index_t token(index_t e, index_t c) const noexcept { return queue_(e, c).token; }

  /// The experts `own` choose by scores [T,E] from the valid tokens of a group; `taken` says how many each may take,
  /// and then how many it does.
  void choose(const matrix_buffer<Scalar>& scores, token_range group, modality_experts::part own, const token_cap& cap,
              const executor_ref& executor) {
    sort(scores, own, executor, [](index_t) { return Scalar(0); });
    if (cap.limits(own.count) && is_crowded(group, own, cap)) take_turns(scores, group, own, cap, executor);
  }

private:
  /// The best tokens of every expert by score and bonus(i), that of the i-th valid token, come first in its queue.
  template <typename Bonus>
  void sort(const matrix_buffer<Scalar>& scores, modality_experts::part own, const executor_ref& executor, Bonus bonus,
            bool sorts_all = false) {
    executor.for_work(4 * own.count * valid.size()).parallel_for(own.count, [&](index_t task) {
      const index_t e = own.first + task;
      token_candidate<Scalar>* queue = queue_.row(e);
      for (index_t i = 0; i < valid.size(); ++i)
        queue[i] = {order_key(static_cast<Scalar>(scores(valid[i], e) + bonus(i))), valid[i]};
      std::partial_sort(queue, queue + (sorts_all ? valid.size() : taken[e]), queue + valid.size());
    });
  }

  /// Whether the first of the queues give a token more experts than the cap allows.
  bool is_crowded(token_range group, modality_experts::part own, const token_cap& cap) {
    room_.assign(group.size(), cap.most);
    index_t least = 0;
    for (index_t e = own.first; e < own.first + own.count; ++e)
      for (index_t c = 0; c < taken[e]; ++c) least = (std::min)(least, --room_[token(e, c) - group.begin]);
    return least < 0;
  }

  /// Experts take turns: each moves the best token that has room left to its place in the front of the queue.
  void take_turns(const matrix_buffer<Scalar>& scores, token_range group, modality_experts::part own,
                  const token_cap& cap, const executor_ref& executor) {
    prices_.settle(
        cap, valid.size(), own.count,
        [&](index_t i, index_t e) { return static_cast<double>(scores(valid[i], own.first + e)); },
        [&](index_t e) { return taken[own.first + e]; }, executor);
    sort(scores, own, executor, [&](index_t i) { return prices_[i]; }, true);
    room_.assign(group.size(), cap.most);
    next_.assign(taken.size(), 0);
    index_t turns = 0;
    for (index_t e = own.first; e < own.first + own.count; ++e) turns = (std::max)(turns, taken[e]);
    for (index_t c = 0; c < turns; ++c)
      for (index_t e = own.first; e < own.first + own.count; ++e) {
        if (c >= taken[e]) continue;
        index_t& i = next_[e];
        while (i < valid.size() && room_[token(e, i) - group.begin] == 0) ++i;
        if (i == valid.size()) {
          taken[e] = c;
          continue;
        }
        --room_[token(e, i) - group.begin];
        queue_(e, c) = queue_(e, i++);
      }
  }

  matrix_buffer<token_candidate<Scalar>> queue_;  // [E,T]
  token_prices prices_;                           // of the group's valid tokens
  buffer<index_t> room_;                          // experts that each token of the group may still have
  buffer<index_t> next_;                          // [E] how far down its queue each expert is
};

}  // namespace sluice::inline SLUICE_ISA
