// expect: sluice: router and experts of one layer need the same scalar

#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

sluice::moe_layer layer{sluice::top_k_router<float>{8, 4, {.top_k = 2}},
                        sluice::expert_bank<sluice::swiglu<double>>{4, 8, 16}};
