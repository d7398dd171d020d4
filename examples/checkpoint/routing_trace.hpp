/// routing_trace: which tokens went to which experts, layer by layer, and how evenly.
#pragma once

#include <sluice/core/sparse_plan.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace checkpoint {

using sluice::index_t;

/// One choice: the token went to the expert, as its rank-th best, with that weight.
struct traced_choice {
  index_t token;
  std::int32_t rank;
  std::int32_t expert;
  float weight;
};

/// Two experts that share tokens.
struct expert_pair {
  index_t first, second;  // first < second
  index_t tokens;         // that both of them get
  double lift;            // times as many as if the two were chosen independently of one another
};

struct traced_layer {
  std::string name;
  index_t tokens = 0, experts = 0;
  index_t dropped = 0;                 // choices that a capacity limit refused
  index_t invalid = 0;                 // tokens whose scores held NaN
  std::vector<traced_choice> choices;  // by token, then by rank
  std::vector<index_t> load;           // E: tokens of each expert
  sluice::matrix<index_t> together;    // E x E: tokens that both experts get; the diagonal holds the loads

  index_t assignments() const { return static_cast<index_t>(choices.size()); }

  /// Entropy of the load in bits: log2(E) if it is even, 0 if one expert has everything or nothing was routed.
  double entropy_bits() const {
    double sum = 0;
    for (const index_t n : load) {
      const double share = n == 0 ? 0 : static_cast<double>(n) / static_cast<double>(assignments());
      if (n > 0) sum -= share * std::log2(share);
    }
    return std::max(sum, 0.0);
  }

  /// As a part of log2(E), the most there can be; a single expert is as even as can be.
  double entropy_normalised() const {
    if (experts == 1) return assignments() > 0 ? 1 : 0;
    return entropy_bits() / std::log2(static_cast<double>(experts));
  }

  double dead_fraction() const {
    return static_cast<double>(std::count(load.begin(), load.end(), 0)) / static_cast<double>(experts);
  }

  double even_load() const { return static_cast<double>(assignments()) / static_cast<double>(experts); }

  double max_over_mean() const {
    if (choices.empty()) return 0;
    return static_cast<double>(*std::max_element(load.begin(), load.end())) / even_load();
  }

  /// The `most` pairs that share the most tokens, at least one; of equal pairs those with the lower numbers.
  std::vector<expert_pair> top_pairs(std::size_t most = 10) const {
    std::vector<expert_pair> pairs;
    for (index_t a = 0; a < experts; ++a)
      for (index_t b = a + 1; b < experts; ++b) {
        if (together(a, b) == 0) continue;
        const double independent = static_cast<double>(load[static_cast<std::size_t>(a)]) *
                                   static_cast<double>(load[static_cast<std::size_t>(b)]) / static_cast<double>(tokens);
        pairs.push_back({a, b, together(a, b), static_cast<double>(together(a, b)) / independent});
      }
    const auto more = [](const expert_pair& x, const expert_pair& y) { return x.tokens > y.tokens; };
    std::stable_sort(pairs.begin(), pairs.end(), more);
    pairs.resize(std::min(pairs.size(), most));
    return pairs;
  }
};

class routing_trace {
public:
  /// Adds what a layer did with its tokens. A token's experts are distinct, as in every plan that a router makes.
  void add(std::string name, const sluice::sparse_plan<float>& plan) {
    traced_layer layer;
    layer.name = std::move(name);
    layer.tokens = plan.tokens();
    layer.experts = plan.experts();
    layer.dropped = static_cast<index_t>(plan.dropped().size());
    layer.invalid = static_cast<index_t>(plan.invalid_tokens().size());
    layer.together = sluice::matrix<index_t>::Zero(plan.experts(), plan.experts());
    layer.choices.reserve(static_cast<std::size_t>(plan.size()));
    for (index_t t = 0; t < plan.tokens(); ++t)
      for (const index_t i : plan.of_token(t)) {
        layer.choices.push_back(
            {t, static_cast<std::int32_t>(plan.rank(i)), static_cast<std::int32_t>(plan.expert(i)), plan.weight(i)});
        for (const index_t j : plan.of_token(t)) ++layer.together(plan.expert(i), plan.expert(j));
      }
    for (index_t e = 0; e < plan.experts(); ++e) layer.load.push_back(plan.load(e));
    layers_.push_back(std::move(layer));
  }

  const std::vector<traced_layer>& layers() const { return layers_; }

private:
  std::vector<traced_layer> layers_;
};

}  // namespace checkpoint
