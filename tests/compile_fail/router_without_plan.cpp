// expect: sluice: router needs a member type `plan`, for instance sluice::sparse_plan<scalar>
#include <sluice/core/concepts.hpp>
#include <sluice/core/sparse_plan.hpp>

struct my_router {
  using scalar = float;
  struct tape {};
  sluice::index_t inputs() const { return 4; }
  sluice::index_t experts() const { return 2; }
  void route(sluice::tokens_in<float>, const sluice::routing_context<float>&, sluice::sparse_plan<float>&, tape&) const {}
};

static_assert(sluice::explain_router<my_router>());
