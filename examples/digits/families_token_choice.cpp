// Routers in which each token chooses the same number of experts.
#include <sluice/expert/ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/loss/switch_balance.hpp>
#include <sluice/router/tokens_choose/gshard_top2.hpp>
#include <sluice/router/tokens_choose/noisy_top_k.hpp>
#include <sluice/router/tokens_choose/sigmoid_top_k.hpp>
#include <sluice/router/tokens_choose/switch_top1.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include "families.hpp"

namespace digits {

std::vector<family> token_choice_families() {
  using namespace sluice;
  constexpr index_t D = token_size, H = hidden, E = expert_count;
  const expert_bank<ffn<float>> two{E, D, H}, one{E, D, 2 * H};  // for k = 2 and k = 1
  const switch_balance balance{.coefficient = 0.01};

  return {
      make_family("top_k", "Top-k (k = 2)",
                  [=] {
                    return moe_layer{top_k_router<float>{D, E, {.top_k = 2}}, two, balance};
                  }),
      make_family("noisy_top_k", "Noisy top-k (k = 2)",
                  [=] {
                    return moe_layer{learned_noise_top_k_router<float>{D, E, {.top_k = 2}}, two, balance};
                  }),
      make_family("switch", "Switch (k = 1)",
                  [=] {
                    return moe_layer{switch_router<float>{D, E}, one, balance};
                  }),
      make_family("gshard", "GShard top-2",
                  [=] {
                    return moe_layer{gshard_router<float>{D, E}, two, balance};
                  }),
      make_family("deepseek_v3", "Sigmoid + bias (DeepSeek-V3)",
                  [=] {
                    return moe_layer{sigmoid_router<float>{D, E, {.top_k = 2}}, two};
                  }),
  };
}

}  // namespace digits
