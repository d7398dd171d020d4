// expect: sluice: expert bank needs a default-constructible member type `tape`
#include <sluice/core/concepts.hpp>

struct my_bank {
  using scalar = float;
  sluice::index_t inputs() const { return 4; }
  sluice::index_t outputs() const { return 4; }
  sluice::index_t experts() const { return 2; }
};

static_assert(sluice::explain_bank<my_bank>());
