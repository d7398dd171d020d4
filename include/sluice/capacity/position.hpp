/// Capacity by position: an expert takes the first tokens that ask for it. The usual rule.
///
/// All first choices come before any second choice; within a rank, token order. Every choice advances the expert's
/// queue, kept or not; the choice is kept if its place in the queue is below the expert's limit. Not causal: how many
/// tokens there are, and what later tokens choose first, decides which second choices fit. Groups are served one by
/// one, each with limits of its own. Lepikhin et al. 2020, arXiv:2006.16668, algorithm 1; Riquelme et al. 2021,
/// arXiv:2106.05974.
///
///   position_capacity(limit)                               first choices before second ones
///   position_capacity(limit, position_order::by_token)     all choices of a token before those of the next: the policy
///                                                          "position" of DeepSpeed's top-k gate and Megatron-Core
///
/// By token, an expert keeps the first tokens that chose it, as whichever choice: earlier tokens then depend on later
/// ones by the limit only.
#pragma once

#include <sluice/capacity/capacity_limit.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// Appends what a group asked for to the order: all first choices in token order, then all second choices, ...
template <typename Scalar>
void append_by_rank(choice_table<Scalar>& choices, token_range group) {
  for (index_t rank = 0; rank < choices.top_k; ++rank)
    for (index_t t = group.begin; t < group.end; ++t)
      if (choices.asked[t * choices.top_k + rank]) choices.order.push_back(t * choices.top_k + rank);
}

/// Appends what a group asked for to the order: all choices of the first token, then those of the second, ...
template <typename Scalar>
void append_by_token(choice_table<Scalar>& choices, token_range group) {
  for (index_t pair = group.begin * choices.top_k; pair < group.end * choices.top_k; ++pair)
    if (choices.asked[pair]) choices.order.push_back(pair);
}

/// Serves order[first...] under a limit; nothing happens if nothing was asked for.
template <typename Scalar>
void serve_in_order(const capacity_limit& limit, choice_table<Scalar>& choices, index_t first, token_range group,
                    index_t experts, const routing_context<Scalar>& context) {
  if (choices.order.size() > first)
    choices.serve(first, experts, group_limits(limit, choices, first, group, experts, context));
}

}  // namespace detail

enum class position_order { by_rank, by_token };

class position_capacity {
public:
  static constexpr bool causal = false;

  explicit position_capacity(capacity_limit limit, position_order order = position_order::by_rank)
      : limit_(std::move(limit)), order_(order) {}

  template <typename Scalar>
  void serve(choice_table<Scalar>& choices, token_range group, index_t experts,
             const routing_context<Scalar>& context) const {
    const index_t first = choices.order.size();
    if (order_ == position_order::by_rank)
      detail::append_by_rank(choices, group);
    else
      detail::append_by_token(choices, group);
    detail::serve_in_order(limit_, choices, first, group, experts, context);
  }

  const capacity_limit& limit() const noexcept { return limit_; }

private:
  capacity_limit limit_;
  position_order order_;
};

static_assert(CapacityPolicy<position_capacity>);

}  // namespace sluice::inline SLUICE_ISA
