// expect: sluice: gate needs `void forward\(tokens_in<scalar> x, const routing_context<scalar>&, tokens_out<scalar> logits, tape&\) const`
#include <sluice/core/concepts.hpp>

struct my_gate {
  using scalar = float;
  struct tape {};
  sluice::index_t inputs() const { return 4; }
  sluice::index_t experts() const { return 2; }
  sluice::matrix<float> forward(sluice::tokens_in<float> x) const { return x; }
};

static_assert(sluice::explain_gate<my_gate>());
