// Attention that is a mixture itself. Sizes are such that a byte costs no more than with four plain heads.
#include <sluice/attention/routed_query_attention.hpp>
#include <sluice/attention/routed_value_attention.hpp>
#include <sluice/loss/entropy.hpp>
#include <sluice/loss/switch_balance.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include "kinds.hpp"

namespace language_model {

namespace {

/// A byte asks with the heads of some experts; all of them look at the same keys.
part routed_queries(const sizes& s, sluice::index_t all, sluice::index_t some, sluice::index_t key_heads,
                    sluice::weighting weights) {
  using namespace sluice;
  const index_t head = s.width / 4;
  return part(routed_query_attention{top_k_router<float>{s.width, all, {.top_k = some, .weights = weights}},
                                     {.key_heads = key_heads, .head_width = head, .rotary = {.width = head}},
                                     switch_balance{.coefficient = 0.01}});
}

}  // namespace

part mixture_of_heads(const sizes& s) { return routed_queries(s, 16, 5, 1, sluice::weighting::renorm_detached); }

part jetmoe_attention(const sizes& s) { return routed_queries(s, 8, 2, 2, sluice::weighting::post); }

part switch_head_attention(const sizes& s) {
  using namespace sluice;
  constexpr index_t heads = 2, experts_a_head = 8, chosen_a_head = 3;
  const head_router router{
      sigmoid_router<float>{s.width, heads * experts_a_head, switch_head_routing<float>(heads, chosen_a_head)},
      entropy_loss{.coefficient = 0.001}};
  const index_t width = s.width / 4;
  return part(routed_value_attention{
      router, router, no_norm<float>{}, {.heads = heads, .key_width = width, .rotary = {.width = width / 2}}});
}

}  // namespace language_model
