// expect: sluice: executor needs .void parallel_for
#include <sluice/core/concepts.hpp>
#include <sluice/core/sparse_plan.hpp>

struct my_executor {
  template <typename Body>
  void run(sluice::index_t n, Body body);
};

static_assert(sluice::explain_executor<my_executor>());
