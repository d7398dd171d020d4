// expect: sluice: expert bank needs `index_t experts\(\) const`
#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include "unfinished_parts.hpp"

using namespace sluice;

void use() { moe_layer layer{top_k_router<float>{4, 2}, bank_without_experts{}}; }
