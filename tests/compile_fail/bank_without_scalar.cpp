// expect: sluice: expert bank needs a floating-point member type `scalar`
#include <sluice/core/concepts.hpp>

struct my_bank {
  struct tape {};
  sluice::index_t inputs() const { return 4; }
  sluice::index_t outputs() const { return 4; }
  sluice::index_t experts() const { return 2; }
  void forward(sluice::tokens_in<float>, const sluice::expert_rows&, sluice::tokens_out<float>, tape&, const sluice::executor_ref&) const {}
};

static_assert(sluice::explain_bank<my_bank>());
