// expect: sluice: executor needs `void parallel_for\(index_t n, body\)` for any body callable with an index_t
#include <sluice/core/concepts.hpp>

struct my_pool {
  template <typename Body>
  void run(sluice::index_t n, Body body) {
    for (sluice::index_t i = 0; i < n; ++i) body(i);
  }
};

static_assert(sluice::explain_executor<my_pool>());
