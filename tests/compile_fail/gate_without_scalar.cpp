// expect: sluice: gate needs a floating-point member type `scalar`
#include <sluice/core/concepts.hpp>

struct my_gate {
  struct tape {};
  sluice::index_t inputs() const { return 4; }
  sluice::index_t experts() const { return 2; }
  void forward(sluice::tokens_in<float>, const sluice::routing_context<float>&, sluice::tokens_out<float>, tape&) const {}
};

static_assert(sluice::explain_gate<my_gate>());
