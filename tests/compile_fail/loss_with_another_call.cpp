// expect: sluice: auxiliary loss needs `scalar operator\(\)\(const seen&, const plan&, const routing_context<scalar>&, dseen&\) const` for the `seen` and `dseen` of this router.s tape
#include <sluice/core/concepts.hpp>
#include <sluice/core/signals.hpp>
#include <sluice/core/sparse_plan.hpp>

struct my_router {
  using scalar = float;
  using plan = sluice::sparse_plan<float>;
  struct tape {
    sluice::score_signals<float> seen;
    sluice::score_gradients<float> dseen;
  };
  sluice::index_t inputs() const { return 4; }
  sluice::index_t experts() const { return 2; }
  void route(sluice::tokens_in<float>, const sluice::routing_context<float>&, plan&, tape&) const {}
};

struct my_loss {
  float operator()(const sluice::sparse_plan<float>&) const { return 0; }
};

static_assert(sluice::explain_loss<my_loss, my_router>());
