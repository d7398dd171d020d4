/// Tokens and plans: what the layers are given, prepared before any clock runs.
///
/// A case has several batches and every repetition takes the next one, so that one token does not meet the same experts again
/// while their weights are still in a cache. Every implementation sees the same batches in the same order.
#pragma once

#include <sluice/core/random.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/core/types.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <numeric>
#include <utility>
#include <vector>

#include "shapes.hpp"

namespace bench {

using plan = sluice::sparse_plan<float>;
using token_rows = sluice::matrix<float>;

/// Standard normal numbers; `seed` and the position decide each of them.
inline token_rows random_tokens(index_t rows, index_t cols, std::uint64_t seed) {
  const sluice::random_source random(seed);
  token_rows x(rows, cols);
  for (index_t i = 0; i < x.size(); ++i)
    x.data()[i] = static_cast<float>(random.normal(sluice::random_site::user_site, i));
  return x;
}

inline std::vector<token_rows> random_batches(index_t rows, index_t cols, std::uint64_t seed) {
  const index_t count = std::clamp<index_t>(256 / rows, 2, 16);
  std::vector<token_rows> batches;
  for (index_t b = 0; b < count; ++b)
    batches.push_back(random_tokens(rows, cols, seed + static_cast<std::uint64_t>(b)));
  return batches;
}

/// K distinct experts a token, weight 1/K each, drawn without replacement from popularity (1 + rank)^-exponent: 0 is uniform,
/// 1 is Zipf's law. Which expert has which rank is drawn too. (The K largest of log p + Gumbel noise are such a draw.)
inline plan skewed_plan(index_t rows, index_t experts, index_t top_k, double exponent, std::uint64_t seed) {
  const sluice::random_source random(seed);
  index_t draws = 0;
  const auto uniform = [&] { return random.uniform(sluice::random_site::user_site, draws++); };
  std::vector<index_t> rank(static_cast<std::size_t>(experts));
  std::iota(rank.begin(), rank.end(), index_t{0});
  for (std::size_t i = rank.size(); i > 1; --i)
    std::swap(rank[i - 1], rank[std::min(i - 1, static_cast<std::size_t>(uniform() * static_cast<double>(i)))]);

  plan p;
  p.reset(rows, experts);
  std::vector<std::pair<double, index_t>> keys(static_cast<std::size_t>(experts));
  for (index_t t = 0; t < rows; ++t) {
    for (index_t e = 0; e < experts; ++e) {
      const auto at = static_cast<std::size_t>(e);
      const double noise = random.gumbel(sluice::random_site::user_site, draws++);
      keys[at] = {noise - exponent * std::log(1.0 + static_cast<double>(rank[at])), e};
    }
    std::partial_sort(keys.begin(), keys.begin() + top_k, keys.end(), std::greater<>());
    for (index_t j = 0; j < top_k; ++j)
      p.add(t, keys[static_cast<std::size_t>(j)].second, 1.0f / static_cast<float>(top_k), j);
  }
  p.finish();
  return p;
}

/// Which experts a set of plans calls upon, as means over the plans.
struct load_summary {
  double touched = 0;
  double largest = 0;
};

inline load_summary summarize(const std::vector<plan>& plans) {
  load_summary sum;
  for (const plan& p : plans) {
    index_t largest = 0;
    for (const sluice::row_range& own : p.by_expert()) {
      ++sum.touched;
      largest = std::max(largest, own.size());
    }
    sum.largest += static_cast<double>(largest);
  }
  const auto count = static_cast<double>(plans.size());
  return {sum.touched / count, sum.largest / count};
}

}  // namespace bench
