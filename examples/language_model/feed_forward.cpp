// Feed-forward parts: one network for every byte, or the best of many experts by a score.
#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/loss/entropy.hpp>
#include <sluice/loss/switch_balance.hpp>
#include <sluice/router/tokens_choose/sigmoid_top_k.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include "kinds.hpp"

namespace language_model {

namespace {

sluice::expert_bank<sluice::swiglu<float>> bank(const sizes& s) {
  return sluice::expert_bank<sluice::swiglu<float>>(experts, s.width, hidden(s));
}

}  // namespace

part dense_feed_forward(const sizes& s) {
  return part(sluice::dense_layer{sluice::swiglu<float>{s.width, dense_hidden(s)}});
}

part top_k_feed_forward(const sizes& s) {
  using namespace sluice;
  return part(moe_layer{top_k_router<float>{s.width, experts, {.top_k = chosen}}, bank(s),
                        switch_balance{.coefficient = 0.01}});
}

part balanced_feed_forward(const sizes& s) {
  using namespace sluice;
  return part(moe_layer{sigmoid_router<float>{s.width, experts, {.top_k = chosen}}, bank(s)});
}

part sigma_feed_forward(const sizes& s) {
  using namespace sluice;
  return part(moe_layer{
      sigmoid_router<float>{s.width, experts, {.top_k = chosen, .renormalize = false, .selection_bias = false}},
      bank(s), entropy_loss{.coefficient = 0.001}});
}

}  // namespace language_model
