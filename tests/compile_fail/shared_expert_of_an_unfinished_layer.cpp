// expect: sluice: layer needs `void forward\(tokens_in<scalar> x, tokens_out<scalar> y, tape&
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/shared_expert.hpp>

using namespace sluice;

struct my_layer {
  using scalar = float;
  using context_type = routing_context<float>;
  struct workspace {};
  struct tape {};
  index_t inputs() const { return 4; }
  index_t outputs() const { return 4; }
  index_t experts() const { return 2; }
  void forward(tokens_in<float>, tokens_out<float>, workspace&, const context_type&) const {}
};

void use() { shared_expert_layer layer{my_layer{}, swiglu<float>{4, 3}}; }
