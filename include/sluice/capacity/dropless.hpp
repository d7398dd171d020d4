/// No capacity limit: every choice is kept. The natural default on a CPU.
///
/// An expert sees its tokens in token order.
#pragma once

#include <sluice/core/choices.hpp>

#include <limits>

namespace sluice::inline SLUICE_ISA {

struct dropless {
  static constexpr bool causal = true;

  template <typename Scalar>
  void serve(choice_table<Scalar>& choices, token_range group, index_t experts, const routing_context<Scalar>&) const {
    const index_t first = choices.order.size();
    for (index_t pair = group.begin * choices.top_k; pair < group.end * choices.top_k; ++pair)
      if (choices.asked[pair]) choices.order.push_back(pair);
    choices.serve(first, experts, [](index_t) { return (std::numeric_limits<index_t>::max)(); });
  }
};

static_assert(CapacityPolicy<dropless>);

}  // namespace sluice::inline SLUICE_ISA
