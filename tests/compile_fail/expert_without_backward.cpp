// expect: sluice: expert needs `void backward\(tokens_in<scalar> x, tokens_in<scalar> dy, tokens_out<scalar> saved, tokens_out<scalar> dx\)` to be trained
#include <sluice/core/concepts.hpp>

struct my_expert {
  using scalar = float;
  sluice::index_t inputs() const { return 4; }
  sluice::index_t outputs() const { return 4; }
  sluice::index_t saved_columns() const { return 0; }
  void forward(sluice::tokens_in<float>, sluice::tokens_out<float>, sluice::tokens_out<float>) const {}
};

static_assert(sluice::explain_differentiable_expert<my_expert>());
