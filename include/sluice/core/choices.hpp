/// What the tokens of a batch ask for before capacity: the table that routers fill and capacity policies serve.
///
///   expert [T,K]   ids in order of preference, no_expert where a token made fewer choices
///   weight [T,K]   combine weights
///   asked [T,K]    1 where the choice wants to be served: chosen, and not thinned out at random
///   priority [T]   how sure the token is, for orders that serve sure tokens first
///
/// A capacity policy serves the choices of one group: it appends every pair t*K + j that was asked for to `order`, and
/// serve() gives each its slot in the expert's queue and keeps it if there is room.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/context.hpp>

#include <concepts>

namespace sluice::inline SLUICE_ISA {

inline constexpr index_t no_expert = -1;

template <FloatOrDouble Scalar>
struct choice_table {
  index_t tokens = 0;
  index_t top_k = 0;
  buffer<index_t> expert;
  buffer<Scalar> weight;
  buffer<Scalar> priority;
  buffer<std::uint8_t> asked;
  buffer<std::uint8_t> kept;
  buffer<index_t> slot;
  buffer<index_t> order;
  buffer<index_t> queue;  ///< scratch: queue length of each expert

  void reset(index_t token_count, index_t choices) {
    tokens = token_count;
    top_k = choices;
    expert.assign(tokens * top_k, no_expert);
    weight.resize(tokens * top_k);
    priority.resize(tokens);
    asked.assign(tokens * top_k, 0);
    kept.assign(tokens * top_k, 0);
    slot.resize(tokens * top_k);
    order.reserve(tokens * top_k);
    order.clear();
  }

  /// The K experts of a token, and their weights.
  index_t* ids(index_t token) noexcept { return expert.data() + token * top_k; }
  Scalar* weights(index_t token) noexcept { return weight.data() + token * top_k; }

  /// Serves the pairs order[first...] : each takes the next slot of its expert and is kept if slot < limit(expert).
  template <typename Limit>
  void serve(index_t first, index_t experts, Limit limit) {
    queue.assign(experts, 0);
    for (index_t i = first; i < order.size(); ++i) {
      const index_t pair = order[i];
      slot[pair] = queue[expert[pair]]++;
      kept[pair] = slot[pair] < limit(expert[pair]);
    }
  }
};

/// Decides which choices of a group are kept, and in which order an expert sees them.
template <typename C, typename Scalar = float>
concept CapacityPolicy = requires(const C& policy, choice_table<Scalar>& choices, token_range group, index_t experts,
                                  const routing_context<Scalar>& context) {
  policy.serve(choices, group, experts, context);
  { C::causal } -> std::convertible_to<bool>;
};

template <typename C, typename Scalar = float>
consteval bool explain_capacity() {
  static_assert(CapacityPolicy<C, Scalar>,
                "sluice: capacity policy needs `void serve(choice_table<scalar>&, token_range, index_t experts, const "
                "routing_context<scalar>&) const` and `static constexpr bool causal`");
  return CapacityPolicy<C, Scalar>;
}

}  // namespace sluice::inline SLUICE_ISA
