// expect: sluice: capacity policy needs `void serve\(choice_table<scalar>&, token_range, index_t experts, const routing_context<scalar>&\) const` and `static constexpr bool causal`
#include <sluice/core/choices.hpp>

struct my_capacity {
  void serve(sluice::choice_table<float>&, sluice::token_range, sluice::index_t, const sluice::routing_context<float>&) const {}
};

static_assert(sluice::explain_capacity<my_capacity>());
