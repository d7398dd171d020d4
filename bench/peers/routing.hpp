/// Routing as the twins do it: a list of tokens for every expert.
#pragma once

#include <sluice/core/sparse_plan.hpp>
#include <sluice/core/types.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "weights.hpp"

namespace bench::peers {

struct assignment {
  index_t token;
  float weight;
};

using expert_lists = std::vector<std::vector<assignment>>;

/// The k largest logits and their softmax: what sluice's top_k_router does by default.
inline void choose_top_k(const matrix& logits, index_t k, expert_lists& lists) {
  const index_t experts = logits.cols();
  lists.resize(static_cast<std::size_t>(experts));
  for (auto& list : lists) list.clear();
  std::vector<index_t> order(static_cast<std::size_t>(experts));
  for (index_t t = 0; t < logits.rows(); ++t) {
    const float* row = logits.row(t).data();
    std::iota(order.begin(), order.end(), index_t{0});
    std::partial_sort(order.begin(), order.begin() + k, order.end(),
                      [&](index_t a, index_t b) { return row[a] > row[b]; });
    const float most = row[order.front()];
    float sum = 0;
    for (index_t j = 0; j < k; ++j) sum += std::exp(row[order[static_cast<std::size_t>(j)]] - most);
    for (index_t j = 0; j < k; ++j) {
      const index_t e = order[static_cast<std::size_t>(j)];
      lists[static_cast<std::size_t>(e)].push_back({t, std::exp(row[e] - most) / sum});
    }
  }
}

inline expert_lists lists_of(const sluice::sparse_plan<float>& plan) {
  expert_lists lists(static_cast<std::size_t>(plan.experts()));
  for (index_t i = 0; i < plan.size(); ++i)
    lists[static_cast<std::size_t>(plan.expert(i))].push_back({plan.token(i), plan.weight(i)});
  return lists;
}

/// Where a twin puts its threads: all into each product, one expert after another, or each to an expert of its own.
enum class parallelism { inside_products, over_experts };

}  // namespace bench::peers
