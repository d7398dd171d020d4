// expect: sluice: norm needs types `scalar` and `tape`
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/normalized.hpp>

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

struct my_norm {
  using scalar = float;
  struct tape {};
  void forward(tokens_in<float>, tokens_out<float>, tape&, const executor_ref&) const {}
};

void use() { normalized_layer layer{my_layer{}, my_norm{}}; }
