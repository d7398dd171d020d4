// Routers that say which token may see which expert.
#include <sluice/router/masked/id_mask.hpp>
#include <sluice/router/masked/modality.hpp>
#include <sluice/router/masked/per_sample.hpp>
#include <sluice/router/masked/prototypes.hpp>

#include "subject.hpp"

namespace study {

std::vector<subject> masked() {
  using namespace sluice;
  return {
      {"mask_moe_router", "Masks by token id (MaskMoE)",
       [](const task_sizes& s) {
         const std::vector<index_t> often(static_cast<std::size_t>(token_vocabulary), 1);
         return make_policy(mask_moe_router<float>{masked_gate<linear_gate<float>>(
             linear_gate<float>(s.width, s.experts), frequency_mask(often, s.experts))});
       }},
      {"mobile_vmoe_router", "One expert an image (Mobile V-MoE)",
       [](const task_sizes& s) {
         return make_policy(mobile_vmoe_router<float>{per_group_gate<linear_gate<float>>(s.width, s.experts),
                                                      {.top_k = 1, .weights = weighting::pre}});
       },
       grouping::by_sample, grouping::by_sample},
      {"mocle_router", "By cluster (MoCLE)",
       [](const task_sizes& s) {
         const mocle_gate<float> gate(s.width, s.experts, 4, 8, {.temperature = 0.5F});
         return make_policy(mocle_router<float>{gate, {.top_k = 2, .weights = weighting::pre}});
       }},
      {"moma_router", "Experts choose in a modality (MoMa)",
       [](const task_sizes& s) {
         return make_policy(moma_router<float>{linear_gate<float>(s.width, s.experts), {s.experts / 2, s.experts / 2}});
       },
       grouping::by_sample},
      {"vlmo_router", "A table by modality (VLMo)",
       [](const task_sizes& s) { return make_policy(vlmo_router<float>{s.width, s.experts, {1, 5}}); }},
      {"prototype_router", "Expert prototypes (M6-T)",
       [](const task_sizes& s) {
         return make_policy(prototype_router<float>{s.width, s.experts});
       }},
  };
}

}  // namespace study
