/// The kinds of models that there are: which attention, which feed-forward part.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "model.hpp"

namespace language_model {

struct kind {
  std::string name, title;
  std::string group;  ///< which part is a mixture: "no mixture", "feed-forward", "attention", "both"
  std::function<std::vector<block>(const sizes&)> make;
};

const std::vector<kind>& all_kinds();

// Mixtures of feed-forward networks: a byte meets as many hidden units as in the dense one, of four times as many.
inline constexpr index_t experts = 16, chosen = 4;
inline index_t dense_hidden(const sizes& s) { return 3 * s.width; }
inline index_t hidden(const sizes& s) { return dense_hidden(s) / chosen; }

part dense_attention(const sizes&);
part mixture_of_heads(const sizes&);
part jetmoe_attention(const sizes&);
part switch_head_attention(const sizes&);

part dense_feed_forward(const sizes&);
part top_k_feed_forward(const sizes&);
part balanced_feed_forward(const sizes&);
part sigma_feed_forward(const sizes&);
part relu_feed_forward(const sizes&);
part hash_feed_forward(const sizes&);
part multi_head_feed_forward(const sizes&);

}  // namespace language_model
