// expect: sluice: expert bank needs `void forward\(tokens_in<scalar> x, const expert_rows& rows, tokens_out<scalar> y, tape&, const executor_ref&\) const`
#include <sluice/core/concepts.hpp>

struct my_bank {
  using scalar = float;
  struct tape {};
  sluice::index_t inputs() const { return 4; }
  sluice::index_t outputs() const { return 4; }
  sluice::index_t experts() const { return 2; }
  void forward(sluice::tokens_in<float>, sluice::tokens_out<float>, tape&) const {}  // whose rows are these?
};

static_assert(sluice::explain_bank<my_bank>());
