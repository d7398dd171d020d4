// expect: sluice: this matrix is column-major, or transposed; tokens are rows
#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

using namespace sluice;

void use(const matrix<float>& x, Eigen::MatrixXf& y) {
  moe_layer layer{top_k_router<float>{4, 2, {.top_k = 1}}, expert_bank<swiglu<float>>{2, 4, 3}};
  decltype(layer)::workspace memory;
  layer.forward(x, y, memory);
}
