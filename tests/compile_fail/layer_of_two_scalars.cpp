// expect: sluice: router and experts of one layer need the same scalar
#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

sluice::moe_layer layer{sluice::top_k_router<double>{64, 8}, sluice::expert_bank<sluice::swiglu<float>>{8, 64, 128}};
