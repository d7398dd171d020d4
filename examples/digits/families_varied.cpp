// Routers that show what a router may need besides the tokens: unlike experts, the experts' outputs, experts that come
// and go.
#include <sluice/expert/constant.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/expert/union.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/loss/competition.hpp>
#include <sluice/loss/dynmoe.hpp>
#include <sluice/router/over_training/compete.hpp>
#include <sluice/router/threshold/dynmoe.hpp>
#include <sluice/router/tokens_choose/moe_plus_plus.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include "families.hpp"

namespace digits {

std::vector<family> varied_families() {
  using namespace sluice;
  constexpr index_t D = token_size, H = hidden, E = expert_count;
  const expert_bank<ffn<float>> two{E, D, H};
  const expert_union with_cheap_ones{two, expert_bank<constant_expert<float>>{1, D},
                                     expert_bank<identity_expert<float>>{1, D}, expert_bank<zero_expert<float>>{1, D}};

  return {
      make_family("moe_plus_plus", "MoE++ (v vector, c copy, z zero)",
                  [=] {
                    return moe_layer{moe_plus_plus_router<float, two_layer_gate<float>>{D, E + 3, {.top_k = 2}},
                                     with_cheap_ones, moe_plus_plus_balance(E, 3)};
                  })
          .with_expert_names({"v", "c", "z"}),
      // Starts with four live experts; every 200 steps those that nobody wanted go, and a new one is made for tokens
      // without.
      make_family("dynmoe", "Top-any (DynMoE)",
                  [=] {
                    const turnover_schedule turnover{.period = 200, .start = 100, .window = 100};
                    return moe_layer{top_any_router<float>{D, E, {.live = 4, .schedule = turnover}}, two,
                                     dynmoe_loss{.coefficient = 0.01, .efficiency = 10}};
                  }),
      make_family("compete", "Competition (CompeteSMoE)",
                  [=] {
                    return moe_layer{compete_router{top_k_router<float>{D, E, {.top_k = 2}}, {.frequency = 0.07}}, two,
                                     imitation_loss{.coefficient = 0.1}};
                  }),
  };
}

}  // namespace digits
