// Routers in which an expert takes its best tokens.
#include <sluice/router/experts_choose/expert_choice.hpp>
#include <sluice/router/experts_choose/expert_preferred.hpp>
#include <sluice/router/experts_choose/patch_level.hpp>
#include <sluice/router/experts_choose/predicted_choice.hpp>

#include "subject.hpp"

namespace study {

std::vector<subject> experts_choose() {
  using namespace sluice;
  return {{"expert_choice_router", "Expert choice",
           [](const task_sizes& s) {
             return make_policy(expert_choice_router<float>{s.width, s.experts});
           },
           grouping::by_sample},
          {"taught_choice_router", "Expert choice that teaches a predictor (MoMa)",
           [](const task_sizes& s) {
             using chooses = expert_choice_router<float>;
             const chooses best(s.width, s.experts, {.scores = chooses::score::sigmoid});
             return make_policy(taught_choice_router<float>{best, two_layer_gate<float>(s.width, s.experts)});
           },
           grouping::by_sample},
          {"expert_preferred_router", "Expert-preferred (MoNE's router)",
           [](const task_sizes& s) {
             const std::vector<double> shares(static_cast<std::size_t>(s.experts), 1 / static_cast<double>(s.experts));
             return make_policy(expert_preferred_router<float>{s.width, shares});
           },
           grouping::by_sample},
          {"pmoe_router", "Patch-level (pMoE)",
           [](const task_sizes& s) {
             return make_policy(pmoe_router<float>{s.width, s.experts, std::max<index_t>(1, s.tokens_of_sample / 4)});
           },
           grouping::by_sample, grouping::by_sample}};
}

}  // namespace study
