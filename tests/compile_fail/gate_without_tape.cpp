// expect: sluice: gate needs a default-constructible member type `tape`
#include <sluice/core/concepts.hpp>

struct my_gate {
  using scalar = float;
  sluice::index_t inputs() const { return 4; }
  sluice::index_t experts() const { return 2; }
};

static_assert(sluice::explain_gate<my_gate>());
