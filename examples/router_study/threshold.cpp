// Routers in which a token takes as many experts as pass a threshold.
#include <sluice/loss/dynmoe.hpp>
#include <sluice/loss/relu_l1.hpp>
#include <sluice/loss/switch_balance.hpp>
#include <sluice/router/threshold/dynmoe.hpp>
#include <sluice/router/threshold/relu.hpp>
#include <sluice/router/threshold/skip.hpp>
#include <sluice/router/threshold/top_p.hpp>

#include "subject.hpp"

namespace study {

std::vector<subject> threshold() {
  using namespace sluice;
  const switch_balance balance{.coefficient = 0.01};
  return {
      {"relu_router", "ReLU (ReMoE)",
       [](const task_sizes& s) {
         return make_policy(relu_router<float>{s.width, s.experts}, relu_l1{2, adaptive_l1<float>{s.experts, 2}});
       }},
      {"top_any_router", "Top-any (DynMoE)",
       [](const task_sizes& s) {
         const index_t period = std::max<index_t>(4, s.steps / 8);
         const turnover_schedule turnover{.period = period, .start = period / 2, .window = period / 2};
         return make_policy(top_any_router<float>{s.width, s.experts, {.live = s.experts / 2, .schedule = turnover}},
                            dynmoe_loss{.coefficient = 0.01, .efficiency = 10});
       }},
      {"top_p_router", "Top-p",
       [=](const task_sizes& s) {
         return make_policy(top_p_router<float>{linear_gate<float>(s.width, s.experts), {.threshold = 0.5F}}, balance);
       }},
      {"xmoe_router", "XMoE, capacity 2.5 times the mean",
       [=](const task_sizes& s) {
         const position_capacity capacity(capacity_limit::switch_transformer(2.5));
         return make_policy(
             xmoe_router<float>{linear_gate<float>(s.width, s.experts), {.threshold = 0.5F}, {}, capacity}, balance);
       }},
      {"skipping_router", "Top-k, second skipped if below half",
       [=](const task_sizes& s) {
         return make_policy(
             skipping_router<float>{
                 linear_gate<float>(s.width, s.experts), softmax_rule<float>({.top_k = 2}), {.ratio = 0.5F}},
             balance);
       }},
  };
}

}  // namespace study
