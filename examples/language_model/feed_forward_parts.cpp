// Multi-head mixture of experts: halves of a byte's numbers choose experts apart.
#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/linear.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/sequence.hpp>
#include <sluice/layer/split/sub_tokens.hpp>
#include <sluice/loss/switch_balance.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include "kinds.hpp"

namespace language_model {

part multi_head_feed_forward(const sizes& s) {
  using namespace sluice;
  constexpr index_t parts = 2;
  const auto width = static_cast<double>(s.width);
  const auto equal = equal_cost_sizes({.width = width,
                                       .hidden = static_cast<double>(hidden(s)),
                                       .experts = static_cast<double>(experts),
                                       .top_k = static_cast<double>(chosen),
                                       .matrices = 3},
                                      parts, static_cast<double>(chosen));
  const auto own_hidden = static_cast<index_t>(equal.hidden), own_experts = static_cast<index_t>(equal.experts);
  moe_layer mixture{top_k_router<float>{s.width / parts, own_experts, {.top_k = chosen}},
                    expert_bank<swiglu<float>>{own_experts, s.width / parts, own_hidden},
                    switch_balance{.coefficient = 0.01}};
  const linear_layer<float> map{s.width, s.width, {.bias = false}};
  return part(sequence{map, sub_token_layer{std::move(mixture), parts}, map});
}

}  // namespace language_model
