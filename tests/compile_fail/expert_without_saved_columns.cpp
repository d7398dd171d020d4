// expect: sluice: expert needs `index_t saved_columns\(\) const` and `void forward\(tokens_in<scalar> x, tokens_out<scalar> y, tokens_out<scalar> saved\) const`
#include <sluice/core/concepts.hpp>

struct my_expert {
  using scalar = float;
  sluice::index_t inputs() const { return 4; }
  sluice::index_t outputs() const { return 4; }
  void forward(sluice::tokens_in<float>, sluice::tokens_out<float>, sluice::tokens_out<float>) const {}
};

static_assert(sluice::explain_expert<my_expert>());
