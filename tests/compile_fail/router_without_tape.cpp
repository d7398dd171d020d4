// expect: sluice: router needs a default-constructible member type `tape`
#include <sluice/core/concepts.hpp>
#include <sluice/core/sparse_plan.hpp>

struct my_router {
  using scalar = float;
  using plan = sluice::sparse_plan<float>;
  sluice::index_t inputs() const { return 4; }
  sluice::index_t experts() const { return 2; }
  void route(sluice::tokens_in<float>, const sluice::routing_context<float>&, plan&) const {}
};

static_assert(sluice::explain_router<my_router>());
