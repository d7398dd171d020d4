// expect: sluice: expert needs .index_t outputs.. const.
#include <sluice/core/concepts.hpp>
#include <sluice/core/sparse_plan.hpp>

using namespace sluice;

struct my_expert {
  using scalar = float;
  index_t inputs() const { return 8; }
};

static_assert(explain_expert<my_expert>());
