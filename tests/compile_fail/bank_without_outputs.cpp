// expect: sluice: expert bank needs `index_t outputs\(\) const`
#include <sluice/core/concepts.hpp>

struct my_bank {
  using scalar = float;
  struct tape {};
  sluice::index_t inputs() const { return 4; }
  sluice::index_t experts() const { return 2; }
  void forward(sluice::tokens_in<float>, const sluice::expert_rows&, sluice::tokens_out<float>, tape&, const sluice::executor_ref&) const {}
};

static_assert(sluice::explain_bank<my_bank>());
