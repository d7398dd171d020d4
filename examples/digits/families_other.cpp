// The dense baseline, and routers in which experts choose tokens, tokens are mixed, or the gate turns sparse as it
// learns.
#include <sluice/expert/ffn.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/loss/dselect.hpp>
#include <sluice/loss/relu_l1.hpp>
#include <sluice/router/every_expert/soft_moe.hpp>
#include <sluice/router/experts_choose/expert_choice.hpp>
#include <sluice/router/over_training/dselect_k.hpp>
#include <sluice/router/threshold/relu.hpp>

#include "families.hpp"

namespace digits {

family dense_family() {
  return make_family("dense", "Dense", [] { return sluice::dense_layer{sluice::ffn<float>{token_size, 2 * hidden}}; });
}

std::vector<family> other_families() {
  using namespace sluice;
  constexpr index_t D = token_size, H = hidden, E = expert_count;
  const expert_bank<ffn<float>> two{E, D, H};
  constexpr index_t slots = 4;  // an expert: 32 for the 16 tokens of an image, two a token

  return {
      make_family(
          "expert_choice", "Expert choice",
          [=] {
            return moe_layer{expert_choice_router<float>{D, E}, two};
          },
          routed::per_image),
      make_family(
          "soft_moe", "Soft MoE",
          [=] {
            return moe_layer{soft_moe_router<float>{D, E, {.slots_per_expert = slots}}, two};
          },
          routed::per_image),
      make_family("remoe", "ReLU (ReMoE)",
                  [=] {
                    return moe_layer{relu_router<float>{D, E}, two, relu_l1{2, adaptive_l1<float>{E, 2}}};
                  }),
      make_family("dselect_k", "DSelect-k (k = 2)",
                  [=] {
                    const coefficient_ramp decide{.first = 0, .last = 0.1, .begin = 800, .steps = 400};
                    return moe_layer{dselect_k_router<float>{D, E}, two,
                                     dselect_entropy<>{.coefficient = decide, .mean_over_rows = true}};
                  }),
  };
}

}  // namespace digits
