// expect: sluice: what weights are stored as is a storage, bfloat16_storage or int8_blocks say, and no type of number
#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

using namespace sluice;

void use(const moe_layer<top_k_router<float>, expert_bank<swiglu<float>>>& layer) {
  layer.stored_as<bfloat16>();
}
