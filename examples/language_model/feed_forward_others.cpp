// Feed-forward mixtures in which no score is compared with another: thresholds and tables.
#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/loss/relu_l1.hpp>
#include <sluice/router/fixed/hash.hpp>
#include <sluice/router/threshold/relu.hpp>

#include "kinds.hpp"

namespace language_model {

part relu_feed_forward(const sizes& s) {
  using namespace sluice;
  return part(moe_layer{relu_router<float>{s.width, experts}, expert_bank<swiglu<float>>{experts, s.width, hidden(s)},
                        relu_l1{chosen, adaptive_l1<float>{experts, chosen}}});
}

part hash_feed_forward(const sizes& s) {
  using namespace sluice;
  const auto table = random_hash(byte_values, experts, chosen, random_source(1));
  return part(moe_layer{hash_router<float>{no_gate<float>{s.width, experts}, table},
                        expert_bank<swiglu<float>>{experts, s.width, hidden(s)}});
}

}  // namespace language_model
