// expect: sluice: expert bank needs .void forward
#include <sluice/core/concepts.hpp>
#include <sluice/core/sparse_plan.hpp>

using namespace sluice;

struct my_bank {
  using scalar = float;
  struct tape {};
  index_t inputs() const { return 8; }
  index_t outputs() const { return 8; }
  index_t experts() const { return 4; }
};

static_assert(explain_bank<my_bank>());
