// expect: sluice: gate needs a default-constructible member type .tape.
#include <sluice/core/concepts.hpp>
#include <sluice/core/sparse_plan.hpp>

using namespace sluice;

struct my_gate {
  using scalar = float;
  index_t inputs() const { return 8; }
  index_t experts() const { return 4; }
};

static_assert(explain_gate<my_gate>());
