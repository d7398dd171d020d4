// Routers that say which token may see which expert.
#include <sluice/router/masked/id_mask.hpp>
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
      {"prototype_router", "Expert prototypes (M6-T)",
       [](const task_sizes& s) {
         return make_policy(prototype_router<float>{s.width, s.experts});
       }},
  };
}

}  // namespace study
