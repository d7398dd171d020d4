// expect: sluice: this output cannot be written to: it is const, or an expression without memory of its own
#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

using namespace sluice;

void use(const matrix<float>& x, const float* y) {
  moe_layer layer{top_k_router<float>{4, 2, {.top_k = 1}}, expert_bank<swiglu<float>>{2, 4, 3}};
  decltype(layer)::workspace memory;
  layer.forward(x, const_matrix_map<float>(y, 4, 4), memory);
}
