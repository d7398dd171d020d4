// expect: sluice: router needs .void route.tokens_in<scalar> x
#include <sluice/core/concepts.hpp>
#include <sluice/core/sparse_plan.hpp>

using namespace sluice;

struct my_router {
  using scalar = float;
  using plan = sparse_plan<float>;
  struct tape {};
  index_t inputs() const { return 8; }
  index_t experts() const { return 4; }
  void route(tokens_in<float>, const routing_context<float>&, plan&, tape&) {}  // not const
};

static_assert(explain_router<my_router>());
