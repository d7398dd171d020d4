// Rules that choose for all tokens of a group together, small and complete: what the engine's assign is for.
#pragma once

#include <sluice/kernel/logistic.hpp>
#include <sluice/kernel/top_k.hpp>
#include <sluice/router/choice_rule.hpp>

#include <algorithm>
#include <cmath>

namespace sluice::test {

/// Balanced greedy assignment: of all pairs left, the one with the largest logit comes first, until a token has k
/// experts or an expert ceil(n k / E) of the group's n tokens. Weight sigmoid(logit). Ties: lower token, lower expert.
/// At inference, if told so, each token goes to its k best experts, however many that gives an expert.
template <std::floating_point Scalar>
struct balanced_rule {
  index_t k = 1;
  bool balanced_at_inference = true;

  struct tape {
    struct pair {
      Scalar logit;
      index_t token;
      index_t expert;
    };
    buffer<pair> pairs;
    buffer<index_t> load;
    buffer<index_t> chosen;
  };

  index_t top_k() const { return k; }
  void score(const choice_row<Scalar>& row, Scalar* scores) const {
    for (index_t e = 0; e < row.experts; ++e) scores[e] = kernel::logistic(row.logits[e]);
  }
  bool assigns(const routing_context<Scalar>& context) const { return context.training || balanced_at_inference; }
  index_t choose(const choice_row<Scalar>& row, index_t* ids) const {
    kernel::top_k(row.logits, row.experts, row.k, ids);
    return row.k;
  }

  void assign(const choice_batch<Scalar>& batch, choice_table<Scalar>& choices, tape& t) const {
    const auto tokens = static_cast<index_t>(batch.routable.size());
    const index_t room = (tokens * batch.k + batch.experts - 1) / batch.experts;
    t.pairs.clear();
    for (const index_t token : batch.routable)
      for (index_t e = 0; e < batch.experts; ++e) t.pairs.push_back({batch.logits(token, e), token, e});
    std::sort(t.pairs.begin(), t.pairs.end(), [](const auto& a, const auto& b) {
      if (order_key(a.logit) != order_key(b.logit)) return order_key(a.logit) > order_key(b.logit);
      return a.token != b.token ? a.token < b.token : a.expert < b.expert;
    });
    t.load.assign(batch.experts, 0);
    t.chosen.assign(batch.tokens, 0);
    for (const auto& pair : t.pairs) {
      if (t.load[pair.expert] == room || t.chosen[pair.token] == batch.k) continue;
      choices.ids(pair.token)[t.chosen[pair.token]++] = pair.expert;
      ++t.load[pair.expert];
    }
  }

  void weigh(const choice_row<Scalar>& row, std::span<const index_t> ids, Scalar* weights) const {
    for (const index_t e : ids) *weights++ = row.scores[e];
  }
  void backward(const choice_row<Scalar>& row, const weighed_experts<Scalar>& weighed, Scalar* dlogits) const {
    for (std::size_t j = 0; j < weighed.ids.size(); ++j) {
      const Scalar s = weighed.weights[j];
      dlogits[weighed.ids[j]] += weighed.dweights[j] * s * kernel::logistic(-row.logits[weighed.ids[j]]);
    }
  }
};

}  // namespace sluice::test
