// expect: sluice: expert needs `index_t outputs\(\) const`
#include <sluice/layer/shared_expert.hpp>

#include "unfinished_layers.hpp"

using namespace sluice;

struct my_expert {
  using scalar = float;
  index_t inputs() const { return 4; }
  index_t saved_columns() const { return 0; }
  void forward(tokens_in<float>, tokens_out<float>, tokens_out<float>) const {}
};

void use() { shared_expert_layer layer{whole_layer{}, my_expert{}}; }
