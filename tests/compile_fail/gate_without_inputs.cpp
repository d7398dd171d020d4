// expect: sluice: gate needs `index_t inputs\(\) const`
#include <sluice/core/concepts.hpp>

struct my_gate {
  using scalar = float;
  struct tape {};
  sluice::index_t experts() const { return 2; }
  void forward(sluice::tokens_in<float>, const sluice::routing_context<float>&, sluice::tokens_out<float>, tape&) const {}
};

static_assert(sluice::explain_gate<my_gate>());
