// expect: sluice: expert needs .void backward.*to be trained
#include <sluice/core/concepts.hpp>
#include <sluice/core/sparse_plan.hpp>

using namespace sluice;

struct my_expert {
  using scalar = float;
  index_t inputs() const { return 8; }
  index_t outputs() const { return 8; }
  index_t saved_columns() const { return 0; }
  void forward(tokens_in<float>, tokens_out<float>, tokens_out<float>) const {}
};

static_assert(explain_differentiable_expert<my_expert>());
