// expect: sluice: capacity policy needs .void serve
#include <sluice/core/choices.hpp>

struct my_capacity {
  static constexpr bool causal = true;
};

static_assert(sluice::explain_capacity<my_capacity>());
