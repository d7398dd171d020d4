#include "kinds.hpp"

#include <algorithm>
#include <utility>

namespace language_model {

namespace {

using maker = part (*)(const sizes&);

/// `most`: blocks that a model has; a byte goes through them again where it needs more.
kind blocks_of(std::string name, std::string title, std::string group, maker attention, maker feed_forward,
               index_t most = 64) {
  return {std::move(name), std::move(title), std::move(group), [=](const sizes& s) {
            std::vector<block> blocks;
            for (index_t i = 0; i < std::min(s.depth, most); ++i) blocks.push_back({attention(s), feed_forward(s)});
            return blocks;
          }};
}

}  // namespace

const std::vector<kind>& all_kinds() {
  static const std::vector<kind> kinds{
      blocks_of("dense", "dense", "no mixture", dense_attention, dense_feed_forward),
      blocks_of("top_k", "top-k", "feed-forward", dense_attention, top_k_feed_forward),
      blocks_of("balanced", "sigmoid top-k, balanced by a bias (DeepSeek-V3)", "feed-forward", dense_attention,
                balanced_feed_forward),
      blocks_of("sigma_moe", "sigma-MoE", "feed-forward", dense_attention, sigma_feed_forward),
      blocks_of("relu", "as many as have a positive score (ReMoE)", "feed-forward", dense_attention, relu_feed_forward),
      blocks_of("hash", "a table says which, by the byte (hash layers)", "feed-forward", dense_attention,
                hash_feed_forward),
      blocks_of("mh_moe", "halves of a byte's numbers choose apart (MH-MoE)", "feed-forward", dense_attention,
                multi_head_feed_forward),
      blocks_of("moa", "mixture of attention heads (MoA)", "attention", mixture_of_heads, dense_feed_forward),
      blocks_of("switch_head", "experts for values and outputs (SwitchHead)", "attention", switch_head_attention,
                dense_feed_forward),
      blocks_of("jetmoe", "routed queries, top-k (JetMoE)", "both", jetmoe_attention, top_k_feed_forward),
      blocks_of("moeut", "SwitchHead and sigma-MoE, one block for all depths (MoEUT)", "both", switch_head_attention,
                sigma_feed_forward, 1),
  };
  return kinds;
}

}  // namespace language_model
