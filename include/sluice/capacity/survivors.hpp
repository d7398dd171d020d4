/// Capacity where an expert that overflows picks its survivors: the walk that probability and random capacity share.
///
/// Each expert keeps its best C choices under a strict order; all ranks compete together. Afterwards slots follow
/// position: an expert sees its survivors first choices first, in token order, and the refused choices queue up behind
/// them.
#pragma once

#include <sluice/capacity/position.hpp>

#include <algorithm>

namespace sluice::inline SLUICE_ISA::detail {

/// before(a, b): pair a is served before pair b; a strict total order. Nothing happens if nothing was asked for.
template <typename Scalar, typename Before>
void serve_survivors(const capacity_limit& limit, choice_table<Scalar>& choices, token_range group, index_t experts,
                     const routing_context<Scalar>& context, Before before) {
  const index_t first = choices.order.size();
  append_by_rank(choices, group);
  if (choices.order.size() == first) return;
  const group_limits limits(limit, choices, first, group, experts, context);
  std::sort(choices.order.begin() + first, choices.order.end(), before);
  choices.serve(first, experts, limits);

  choices.order.resize(first);
  append_by_rank(choices, group);
  choices.queue.assign(2 * experts, 0);
  for (index_t i = first; i < choices.order.size(); ++i) {
    const index_t pair = choices.order[i];
    const index_t expert = choices.expert[pair];
    choices.slot[pair] =
        choices.kept[pair] ? choices.queue[expert]++ : limits(expert) + choices.queue[experts + expert]++;
  }
}

}  // namespace sluice::inline SLUICE_ISA::detail
