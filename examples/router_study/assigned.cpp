// Routers that assign all tokens of a batch together.
#include <sluice/router/assigned/balanced_assignment.hpp>
#include <sluice/router/assigned/sinkhorn.hpp>
#include <sluice/router/assigned/sparse_transport.hpp>

#include "subject.hpp"

namespace study {

std::vector<subject> assigned() {
  using namespace sluice;
  return {
      {"sinkhorn_router", "Sinkhorn, tokens choose two",
       [](const task_sizes& s) {
         return make_policy(sinkhorn_router<float>{s.width, s.experts, sinkhorn_router_options::vmoe(2)});
       }},
      {"sinkhorn_expert_choice_router", "Sinkhorn, experts choose",
       [](const task_sizes& s) {
         return make_policy(sinkhorn_expert_choice_router<float>{s.width, s.experts});
       },
       grouping::by_sample},
      {"sparse_expert_choice_router", "Sparse transport, experts choose",
       [](const task_sizes& s) {
         return make_policy(sparse_expert_choice_router<float>{s.width, s.experts});
       },
       grouping::by_sample},
      {"sparse_token_choice_router", "Sparse transport, tokens choose two",
       [](const task_sizes& s) {
         return make_policy(sparse_token_choice_router<float>{s.width, s.experts, {.top_k = 2}});
       },
       grouping::by_sample},
      {"base_router", "Balanced assignment (BASE)",
       [](const task_sizes& s) {
         return make_policy(base_router<float>{s.width, s.experts});
       },
       grouping::by_sample},
  };
}

}  // namespace study
