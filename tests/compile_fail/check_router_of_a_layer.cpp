// expect: sluice: router needs
#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/conformance.hpp>

using namespace sluice;

void use(const moe_layer<top_k_router<float>, expert_bank<swiglu<float>>>& layer) { check_router(layer); }
