// expect: sluice: router needs .index_t experts.. const.
#include <sluice/core/concepts.hpp>
#include <sluice/core/sparse_plan.hpp>

using namespace sluice;

struct my_router {
  using scalar = float;
  using plan = sparse_plan<float>;
  struct tape {};
  index_t inputs() const { return 8; }
};

static_assert(explain_router<my_router>());
