// expect: sluice: router needs `void route\(tokens_in<scalar> x, const routing_context<scalar>&, plan&, tape&\) const`
#include <sluice/core/concepts.hpp>
#include <sluice/core/sparse_plan.hpp>

struct my_router {
  using scalar = float;
  using plan = sluice::sparse_plan<float>;
  struct tape {};
  sluice::index_t inputs() const { return 4; }
  sluice::index_t experts() const { return 2; }
  void route(sluice::tokens_in<float>, const sluice::routing_context<float>&, plan&, tape&) {}
};

static_assert(sluice::explain_router<my_router>());
