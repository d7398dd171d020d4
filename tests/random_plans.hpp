// Random routing plans of both kinds from literal seeds.
#pragma once

#include <sluice/core/soft_plan.hpp>
#include <sluice/core/sparse_plan.hpp>

#include "support.hpp"

namespace sluice::test {

/// Each token has 0 to E experts, in random order, with random weights, negative ones among them.
template <typename Scalar>
sparse_plan<Scalar> random_sparse_plan(index_t tokens, index_t experts, std::uint64_t seed, bool scale_inputs = false) {
  const random_source random(seed);
  sparse_plan<Scalar> plan;
  plan.reset(tokens, experts);
  for (index_t t = 0; t < tokens; ++t) {
    const auto below = [&](random_site site, index_t limit) {
      return static_cast<index_t>(random.uniform(site, t) * static_cast<double>(limit));
    };
    const index_t k = below(random_site("experts of a token"), experts + 1);
    const index_t first = below(random_site("first expert"), experts);
    for (index_t j = 0; j < k; ++j) {
      const auto weight = static_cast<Scalar>(random.normal(random_site::user_site, t * experts + j));
      const double drawn_scale = random.normal(random_site("input scale"), t * experts + j);
      const auto scale = static_cast<Scalar>(scale_inputs ? drawn_scale : 1);
      plan.add(t, (first + j) % experts, weight, j, scale);
    }
  }
  plan.finish();
  return plan;
}

/// Dense random matrices; `borders` cut the tokens into groups (empty: one group).
template <typename Scalar>
soft_plan<Scalar> random_soft_plan(index_t tokens, index_t experts, index_t slots, std::uint64_t seed,
                                   std::span<const index_t> borders = {}) {
  routing_context<Scalar> context;
  context.groups = borders;
  soft_plan<Scalar> plan;
  plan.reset(tokens, experts, slots, context);
  plan.dispatch().map() = random_matrix<Scalar>(tokens, experts * slots, seed);
  plan.combine().map() = random_matrix<Scalar>(tokens, experts * slots, seed + 1);
  return plan;
}

}  // namespace sluice::test
