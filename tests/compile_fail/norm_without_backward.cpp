// expect: sluice: norm needs types `scalar` and `tape`
#include <sluice/layer/normalized.hpp>

#include "unfinished_layers.hpp"

using namespace sluice;

struct my_norm {
  using scalar = float;
  struct tape {};
  void forward(tokens_in<float>, tokens_out<float>, tape&, const executor_ref&) const {}
};

void use() { normalized_layer layer{whole_layer{}, my_norm{}}; }
