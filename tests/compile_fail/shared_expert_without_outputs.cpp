// expect: sluice: expert needs `index_t outputs\(\) const`
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
  void forward(tokens_in<float>, tokens_out<float>, tape&, const context_type&) const {}
};

struct my_expert {
  using scalar = float;
  index_t inputs() const { return 4; }
  index_t saved_columns() const { return 0; }
  void forward(tokens_in<float>, tokens_out<float>, tokens_out<float>) const {}
};

void use() { shared_expert_layer layer{my_layer{}, my_expert{}}; }
