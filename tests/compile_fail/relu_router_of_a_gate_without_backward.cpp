// expect: sluice: gate needs .void backward
#include <sluice/router/relu.hpp>

using namespace sluice;

struct my_gate {
  using scalar = float;
  struct tape {};
  index_t inputs() const { return 8; }
  index_t experts() const { return 4; }
  void forward(tokens_in<float>, const routing_context<float>&, tokens_out<float>, tape&) const {}
};

void use() { relu_router<float, my_gate> router{my_gate{}}; }
