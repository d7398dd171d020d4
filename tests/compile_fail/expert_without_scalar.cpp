// expect: sluice: expert needs a floating-point member type `scalar`
#include <sluice/core/concepts.hpp>

struct my_expert {
  sluice::index_t inputs() const { return 4; }
  sluice::index_t outputs() const { return 4; }
  sluice::index_t saved_columns() const { return 0; }
  void forward(sluice::tokens_in<float>, sluice::tokens_out<float>, sluice::tokens_out<float>) const {}
};

static_assert(sluice::explain_expert<my_expert>());
