// Gates that change over training.
#include <sluice/loss/competition.hpp>
#include <sluice/loss/dselect.hpp>
#include <sluice/loss/stable.hpp>
#include <sluice/loss/switch_balance.hpp>
#include <sluice/router/over_training/compete.hpp>
#include <sluice/router/over_training/dense_to_sparse.hpp>
#include <sluice/router/over_training/dselect_k.hpp>
#include <sluice/router/over_training/mean_active.hpp>
#include <sluice/router/over_training/scheduled_k.hpp>
#include <sluice/router/over_training/stable.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include "subject.hpp"

namespace study {

std::vector<subject> over_training() {
  using namespace sluice;
  return {
      {"dselect_k_router", "DSelect-k",
       [](const task_sizes& s) {
         const coefficient_ramp decide{.first = 0, .last = 0.3, .begin = s.steps / 4, .steps = s.steps / 4};
         return make_policy(dselect_k_router<float>{s.width, s.experts},
                            dselect_entropy<>{.coefficient = decide, .mean_over_rows = true});
       }},
      {"dense_to_sparse_router", "Dense to sparse (EvoMoE)",
       [](const task_sizes& s) {
         const temperature_schedule cooling{.first = 2, .last = 0.3, .steps = s.steps / 2};
         return make_policy(
             dense_to_sparse_router<float>{s.width, s.experts, {.temperature = cooling, .threshold = 0.05F}},
             switch_balance{.coefficient = 0.01});
       }},
      {"mean_active_router", "Mean number of active experts",
       [](const task_sizes& s) {
         const temperature_schedule cooling{.first = 2, .last = 0.3, .steps = s.steps / 2};
         return make_policy(mean_active_router<float>{s.width, s.experts, {.temperature = cooling, .threshold = 0.05F}},
                            switch_balance{.coefficient = 0.01});
       }},
      {"smoe_dropout_router", "SMoE-Dropout: frozen gate, k grows to 2",
       [](const task_sizes& s) {
         return make_policy(smoe_dropout_router<float>{s.width, s.experts, {.schedule = {{.last = 2}}}});
       }},
      {"stable_router", "StableMoE, frozen after half",
       [](const task_sizes& s) {
         return make_policy(stable_router<float>{linear_gate<float>(s.width, s.experts),
                                                 token_id_gate<float>(s.width, s.experts, token_vocabulary),
                                                 {.first_stage = s.steps / 2}},
                            stable_balance{}, distillation{});
       }},
      {"compete_router", "Competition (CompeteSMoE)",
       [](const task_sizes& s) {
         return make_policy(compete_router{top_k_router<float>{s.width, s.experts, {.top_k = 2}}, {.frequency = 0.07}},
                            imitation_loss{.coefficient = 0.1});
       }},
  };
}

}  // namespace study
