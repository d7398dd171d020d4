/// What papers say of their routers, and what was measured here.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "../shared/text.hpp"
#include "study.hpp"

namespace study {

struct claim {
  std::string what;      ///< as a paper says it, with what counts as holding
  std::string measured;  ///< means over the seeds
  bool holds;
};

/// The claims about what was trained.
inline std::vector<claim> claims_about(const results& all, index_t target) {
  using shared::fixed, shared::percent;
  std::vector<claim> claims;
  const auto add = [&](std::string what, std::string measured, bool holds) {
    claims.push_back({std::move(what), std::move(measured), holds});
  };
  const auto& paper = all.paper;
  if (!paper.cubic_experts.empty()) {
    const double cubic = accuracy(paper.cubic_experts), one = accuracy(paper.one_network);
    const double sorted = entropy(paper.cubic_experts), unsorted = entropy(paper.linear_experts);
    add("Chen 2022: a mixture of nonlinear experts solves the clustered task (accuracy at least 98 %)",
        percent(cubic, 2), cubic >= 0.98);
    add("Chen 2022: its router finds the clusters (dispatch entropy below 0.1 of 1.39)", fixed(sorted, 3),
        sorted < 0.1);
    add("Chen 2022: one network of five experts' size does not solve it (accuracy below 90 %)", percent(one, 2),
        one < 0.9);
    add("Chen 2022: linear experts do not find the clusters (dispatch entropy above 0.5)",
        fixed(unsorted, 3) + " at accuracy " + percent(accuracy(paper.linear_experts), 2), unsorted > 0.5);
  }
  const auto with = [&](const std::string& name, auto&& f) {
    for (const outcome& o : all.routers)
      if (o.of.name == name && !o.digits.empty()) f(o);
  };
  const auto at_first = [](const outcome& o) {
    return mean(o.digits, [](const measured& m) { return m.over_training.front().experts_per_token; });
  };
  const std::string k = std::to_string(target);
  with("relu_router", [&](const outcome& o) {
    const double active = experts_per_token(o.digits);
    add("ReMoE: sparsity reaches its target (" + k + " experts a token, within 10 %)",
        fixed(active, 2) + " experts a token, " + fixed(at_first(o), 2) + " after the first epoch",
        std::abs(active - static_cast<double>(target)) <= 0.1 * static_cast<double>(target));
  });
  with("dselect_k_router", [&](const outcome& o) {
    const double active = experts_per_token(o.digits);
    add("DSelect-k: the gate becomes sparse (at most " + k + " experts a token)",
        fixed(active, 2) + " experts a token, " + fixed(at_first(o), 2) + " after the first epoch",
        active <= static_cast<double>(target) + 0.05);
  });
  with("expert_choice_router", [&](const outcome& o) {
    const double spread = load_cv(o.digits);
    add("Expert choice: the load is balanced perfectly (deviation 0)", fixed(spread, 6), spread == 0);
  });
  with("stable_router", [&](const outcome& o) {
    const double changed = mean(o.digits, [](const measured& m) { return m.last().changed; });
    const double before = mean(o.digits, [](const measured& m) {
      double most = 0;
      for (const routing_record& r : m.over_training) most = std::max(most, r.changed);
      return most;
    });
    add("StableMoE: routing is frozen in the second stage (no token changes its expert)",
        percent(changed, 2) + " of the tokens in the last epoch, " + percent(before, 1) + " in the worst",
        changed == 0);
  });
  return claims;
}

}  // namespace study
