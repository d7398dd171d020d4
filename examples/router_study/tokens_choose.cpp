// Routers in which a token takes its k best experts.
#include <sluice/loss/importance.hpp>
#include <sluice/loss/load.hpp>
#include <sluice/loss/switch_balance.hpp>
#include <sluice/router/residual_weights.hpp>
#include <sluice/router/tokens_choose/gshard_top2.hpp>
#include <sluice/router/tokens_choose/importance_score.hpp>
#include <sluice/router/tokens_choose/moe_plus_plus.hpp>
#include <sluice/router/tokens_choose/noisy_top_k.hpp>
#include <sluice/router/tokens_choose/product_key.hpp>
#include <sluice/router/tokens_choose/sigmoid_top_k.hpp>
#include <sluice/router/tokens_choose/sparse_mixer.hpp>
#include <sluice/router/tokens_choose/straight_through.hpp>
#include <sluice/router/tokens_choose/switch_top1.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/router/tokens_choose/tucker_key.hpp>
#include <sluice/router/universal_expert.hpp>

#include "subject.hpp"

namespace study {

std::vector<subject> tokens_choose() {
  using namespace sluice;
  const switch_balance balance{.coefficient = 0.01};
  return {
      {"top_k_router", "Top-k",
       [=](const task_sizes& s) {
         return make_policy(top_k_router<float>{s.width, s.experts, {.top_k = 2}}, balance);
       }},
      {"noisy_top_k_router", "Noisy top-k (V-MoE)",
       [](const task_sizes& s) {
         return make_policy(noisy_top_k_router<float>{s.width, s.experts, {.top_k = 2}},
                            importance_loss{.coefficient = 0.01}, load_loss{.coefficient = 0.01});
       }},
      {"learned_noise_top_k_router", "Noisy top-k (Shazeer)",
       [](const task_sizes& s) {
         return make_policy(learned_noise_top_k_router<float>{s.width, s.experts, {.top_k = 2}},
                            importance_loss{.coefficient = 0.01},
                            load_loss{.coefficient = 0.01, .noise = load_form::learned_noise});
       }},
      {"switch_router", "Switch",
       [=](const task_sizes& s) {
         return make_policy(switch_router<float>{s.width, s.experts}, balance);
       }},
      {"gshard_router", "GShard",
       [=](const task_sizes& s) {
         return make_policy(gshard_router<float>{s.width, s.experts}, balance);
       }},
      {"sigmoid_router", "Sigmoid + bias (DeepSeek-V3)",
       [](const task_sizes& s) {
         return make_policy(sigmoid_router<float>{s.width, s.experts, {.top_k = 2}});
       }},
      {"sparse_mixer_router", "SparseMixer (GRIN)",
       [=](const task_sizes& s) {
         return make_policy(sparse_mixer_router<float>{s.width, s.experts}, balance);
       }},
      {"moe_plus_plus_router", "MoE++, FFN experts only",
       [](const task_sizes& s) {
         return make_policy(
             moe_plus_plus_router<float, two_layer_gate<float>>{
                 s.width, s.experts, {.top_k = 2, .zero_experts = 0, .multiply_input = false}},
             moe_plus_plus_balance(s.experts, 0));
       }},
      {"product_key_router", "Product keys (PEER), 9 experts",
       [](const task_sizes& s) {
         return make_policy(product_key_router<float>{s.width, 3, {.heads = 1, .top_k = 2}});
       }},
      {"tucker_key_router", "Tucker keys (UltraMem), 9 experts",
       [](const task_sizes& s) {
         return make_policy(tucker_key_router<float>{s.width, 3, {.heads = 1, .top_k = 2}});
       }},
      {"importance_score_router", "Top-1, best items first (Sparse-MLP)",
       [=](const task_sizes& s) { return make_policy(importance_score_router<float>{s.width, s.experts}, balance); }},
      {"straight_through_router", "Top-k, weight 1, straight through (AdvMoE)",
       [=](const task_sizes& s) {
         return make_policy(straight_through_router<float>{s.width, s.experts, {.top_k = 2}}, balance);
       }},
      {"universal_expert_router", "Top-k and a universal expert (MoCLE)",
       [=](const task_sizes& s) {
         return make_policy(universal_expert_router{top_k_router<float>{s.width, s.experts - 1, {.top_k = 2}}});
       }},
      {"residual_weights_router", "Top-k, weights 1 + alpha w",
       [=](const task_sizes& s) {
         return make_policy(residual_weights_router(top_k_router<float>{s.width, s.experts, {.top_k = 2}}), balance);
       }},
  };
}

}  // namespace study
