// Routers that use every expert.
#include <sluice/router/every_expert/deep_moe.hpp>
#include <sluice/router/every_expert/dense.hpp>
#include <sluice/router/every_expert/dense_sigmoid.hpp>
#include <sluice/router/every_expert/dense_softmax.hpp>
#include <sluice/router/every_expert/gumbel_softmax.hpp>
#include <sluice/router/every_expert/soft_moe.hpp>

#include "subject.hpp"

namespace study {

std::vector<subject> every_expert() {
  using namespace sluice;
  return {
      {"dense_router", "Every expert, weight 1",
       [](const task_sizes& s) {
         return make_policy(dense_router<float>{s.width, s.experts});
       }},
      {"dense_softmax_router", "Softmax over all (Jacobs)",
       [](const task_sizes& s) {
         return make_policy(dense_softmax_router<float>{s.width, s.experts});
       }},
      {"deep_moe_router", "Softmax over all, held back (deep MoE)",
       [](const task_sizes& s) {
         return make_policy(deep_moe_router<float>{s.width, s.experts, {.margin = 10}});
       }},
      {"dense_sigmoid_router", "Sigmoid of each (KAMoE's weights)",
       [](const task_sizes& s) {
         return make_policy(dense_sigmoid_router<float>{s.width, s.experts});
       }},
      {"gumbel_softmax_router", "Gumbel softmax over all (GG MoE)",
       [](const task_sizes& s) {
         return make_policy(gumbel_softmax_router<float>{s.width, s.experts});
       }},
      {"soft_moe_router", "Soft MoE",
       [](const task_sizes& s) {
         return make_policy(
             soft_moe_router<float>{s.width, s.experts, {.slots_per_expert = s.tokens_of_sample / 4 + 1}});
       },
       grouping::by_sample, grouping::by_sample},
  };
}

}  // namespace study
