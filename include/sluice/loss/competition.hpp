/// Losses of a competition (CompeteSMoE). On steps without one they are 0.
///
///   imitation_loss   mean over t, e of (policy[t,e] - target[t,e])^2  + winners · mean over t and winners of the same
///                    policy = softmax of the router's clean logits;   through_target: gradient also through the target
///   diversity_loss   mean over t and all k*k pairs of winners of their outputs' cosine; an output with itself counts 0
///   contest_balance  E * sum over e of f[e] P[e],  P = mean over t of softmax(responses[t]),  f = share of the tokens
///                    that e won as the best, or with all_winners its share of all wins; no gradient through f
///
/// Gradients: dlogit = policy (c - sum of policy c) with c = 2 (policy - target) / (T E) ...; those of the outputs go
/// by way of responses and cosines through the router's backward_outputs. The published code of the second release
/// detaches the target, that of the first does not, and weighs the sum of imitation and balance by 5. Means are over
/// the tokens that are not padding, of all groups together; the balance is that of a group, and its mean over groups
/// that have tokens (the second release takes each sequence as one). NaN in such a token makes the value NaN.
/// Pham et al. 2024, arXiv:2402.02526; Nguyen et al. 2025, arXiv:2505.13380.
#pragma once

#include <sluice/core/choices.hpp>
#include <sluice/core/context.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/loss/common.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

/// Signals with the results of a competition.
template <typename S>
concept CompetitionSignals = requires(const S& s) {
  s.competing, s.responses, s.policy, s.target, s.winners, s.similarity;
};

namespace detail {

/// Calls f(token) for every token of the group that competed and returns their number.
template <CompetitionSignals Signals, typename F>
index_t for_contests(const Signals& s, token_range group, F&& f) {
  index_t tokens = 0;
  for (index_t t = group.begin; t < group.end; ++t)
    if (s.winners(t, 0) != no_expert) {
      f(t);
      ++tokens;
    }
  return tokens;
}
template <CompetitionSignals Signals, typename F>
index_t for_contests(const Signals& s, F&& f) {
  return for_contests(s, {0, s.winners.rows()}, f);
}

template <CompetitionSignals Signals>
double contests(const Signals& s, token_range group) {
  return static_cast<double>(for_contests(s, group, [](index_t) {}));
}
template <CompetitionSignals Signals>
double contests(const Signals& s) {
  return contests(s, {0, s.winners.rows()});
}

/// d += p (c - sum of p c): the gradient of a softmax p.
template <typename Scalar, typename Derivative>
void add_softmax_gradient(const Scalar* p, Derivative&& c, Scalar* d, index_t count) {
  double inner = 0;
  for (index_t e = 0; e < count; ++e) inner += static_cast<double>(p[e]) * c(e);
  for (index_t e = 0; e < count; ++e) d[e] += static_cast<Scalar>(static_cast<double>(p[e]) * (c(e) - inner));
}

}  // namespace detail

struct imitation_loss {
  double coefficient = 1;
  double winners = 0;           ///< weight of the mean over the winners only
  bool through_target = false;  ///< also move the experts towards the router

  template <CompetitionSignals Signals, typename Plan, std::floating_point Scalar, typename Gradients>
  Scalar operator()(const Signals& s, const Plan&, const routing_context<Scalar>&, Gradients& d) const {
    detail::check_coefficient(coefficient);
    if (coefficient == 0 || !s.competing) return 0;
    const index_t experts = s.target.cols();
    const index_t k = s.winners.cols();
    const double tokens = detail::contests(s);
    const double all = 1 / (tokens * static_cast<double>(experts));
    const double won = winners / (tokens * static_cast<double>(k));
    double sum = 0;
    detail::for_contests(s, [&](index_t t) {
      const auto difference = [&](index_t e) {
        return static_cast<double>(s.policy(t, e)) - static_cast<double>(s.target(t, e));
      };
      const auto share = [&](index_t e) {
        for (index_t j = 0; j < k; ++j)
          if (s.winners(t, j) == e) return all + won;
        return all;
      };
      for (index_t e = 0; e < experts; ++e) sum += share(e) * difference(e) * difference(e);
      const auto c = [&](index_t e) { return 2 * coefficient * share(e) * difference(e); };
      detail::add_softmax_gradient(s.policy.row(t), c, d.clean.row(t), experts);
      // The target is a softmax over all responses, or over the winners' and 0 elsewhere: one rule serves both.
      if (through_target)
        detail::add_softmax_gradient(
            s.target.row(t), [&](index_t e) { return -c(e); }, d.responses.row(t), experts);
    });
    return static_cast<Scalar>(coefficient * sum);
  }
};

struct diversity_loss {
  double coefficient = 1;

  template <CompetitionSignals Signals, typename Plan, std::floating_point Scalar, typename Gradients>
  Scalar operator()(const Signals& s, const Plan&, const routing_context<Scalar>&, Gradients& d) const {
    detail::check_coefficient(coefficient);
    if (coefficient == 0 || !s.competing) return 0;
    const index_t k = s.winners.cols();
    const double share = coefficient / (detail::contests(s) * static_cast<double>(k * k));
    double sum = 0;
    detail::for_contests(s, [&](index_t t) {
      for (index_t j = 0; j < k; ++j)
        for (index_t l = 0; l < k; ++l) {
          if (l == j) continue;
          sum += static_cast<double>(s.similarity(t, j * k + l));
          d.similarity(t, j * k + l) += static_cast<Scalar>(share);
        }
    });
    return sum == 0 ? Scalar(0) : static_cast<Scalar>(share * sum);
  }
};

struct contest_balance {
  double coefficient = 1;
  bool all_winners = false;

  template <CompetitionSignals Signals, typename Plan, std::floating_point Scalar, typename Gradients>
  Scalar operator()(const Signals& s, const Plan&, const routing_context<Scalar>& context, Gradients& d) const {
    detail::check_coefficient(coefficient);
    if (coefficient == 0 || !s.competing) return 0;
    const auto group = [&](index_t g) { return context.group(g, s.winners.rows()); };
    index_t groups = 0;
    for (index_t g = 0; g < context.group_count(); ++g) groups += detail::contests(s, group(g)) > 0;
    double sum = 0;
    for (index_t g = 0; g < context.group_count(); ++g)
      if (detail::contests(s, group(g)) > 0)
        sum += group_value(s, group(g), coefficient / static_cast<double>(groups), d);
    return static_cast<Scalar>(sum);
  }

private:
  template <CompetitionSignals Signals, typename Gradients>
  double group_value(const Signals& s, token_range group, double share, Gradients& d) const {
    const index_t experts = s.responses.cols();
    const index_t counted = all_winners ? s.winners.cols() : 1;
    const double tokens = detail::contests(s, group);
    d.sum_scratch.assign(experts, 0);
    detail::for_contests(s, group, [&](index_t t) {
      for (index_t j = 0; j < counted; ++j)
        d.sum_scratch[s.winners(t, j)] += 1 / (tokens * static_cast<double>(counted));
    });
    d.row_scratch.resize(1, experts);
    const double scale = share * static_cast<double>(experts) / tokens;
    double sum = 0;
    detail::for_contests(s, group, [&](index_t t) {
      auto* p = d.row_scratch.data();
      kernel::softmax(s.responses.row(t), p, experts);
      for (index_t e = 0; e < experts; ++e) sum += d.sum_scratch[e] * static_cast<double>(p[e]);
      detail::add_softmax_gradient(
          p, [&](index_t e) { return scale * d.sum_scratch[e]; }, d.responses.row(t), experts);
    });
    return scale * sum;
  }
};

}  // namespace sluice::inline SLUICE_ISA
