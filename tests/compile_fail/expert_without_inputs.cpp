// expect: sluice: expert needs `index_t inputs\(\) const`
#include <sluice/core/concepts.hpp>

struct my_expert {
  using scalar = float;
  sluice::index_t outputs() const { return 4; }
  sluice::index_t saved_columns() const { return 0; }
  void forward(sluice::tokens_in<float>, sluice::tokens_out<float>, sluice::tokens_out<float>) const {}
};

static_assert(sluice::explain_expert<my_expert>());
