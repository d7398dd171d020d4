// expect: sluice: auxiliary loss needs `scalar operator\(\)\(const seen&
#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/loss/importance.hpp>
#include <sluice/router/over_training/dselect_k.hpp>

using namespace sluice;

void use() { moe_layer layer{dselect_k_router<float>{4, 2}, expert_bank<swiglu<float>>{2, 4, 3}, importance_loss{}}; }
