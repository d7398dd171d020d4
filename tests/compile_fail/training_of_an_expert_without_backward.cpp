// expect: sluice: expert needs `void backward\(tokens_in<scalar> x, tokens_in<scalar> dy, tokens_out<scalar> saved, tokens_out<scalar> dx\)` to be trained
#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

using namespace sluice;

struct my_expert {
  using scalar = float;
  index_t inputs() const { return 4; }
  index_t outputs() const { return 4; }
  index_t saved_columns() const { return 0; }
  void forward(tokens_in<float>, tokens_out<float>, tokens_out<float>) const {}
};

void use(const matrix<float>& dy, matrix<float>& dx) {
  moe_layer layer{top_k_router<float>{4, 2}, expert_bank{2, my_expert{}}};
  decltype(layer)::tape tape;
  layer.backward(dy, dx, tape);
}
