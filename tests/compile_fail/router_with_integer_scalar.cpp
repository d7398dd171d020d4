// expect: sluice: router needs a floating-point member type .scalar.
#include <sluice/core/concepts.hpp>
#include <sluice/core/sparse_plan.hpp>

using namespace sluice;

struct my_router {
  using scalar = int;
  index_t inputs() const { return 8; }
  index_t experts() const { return 4; }
};

static_assert(explain_router<my_router>());
