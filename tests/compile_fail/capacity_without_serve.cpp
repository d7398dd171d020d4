// expect: sluice: capacity policy needs `void serve\(choice_table<scalar>&, token_range, index_t experts, const routing_context<scalar>&\) const` and `static constexpr bool causal`
#include <sluice/core/choices.hpp>

struct my_capacity {
  static constexpr bool causal = true;
};

static_assert(sluice::explain_capacity<my_capacity>());
