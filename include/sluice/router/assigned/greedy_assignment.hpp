/// Balanced assignment, greedily: experts in random order, each takes its m best of the tokens that are left.
///
///   N = m E tokens, scores s [E,N];   order: experts by their draws at greedy_assignment::site, position first_draw + e
///   the i-th expert of the order chooses among N - i m tokens: the first has what it likes best, the last what is left
///
/// One pass, where an auction takes up to hundreds: E selections of m from lists that shrink. The sum of scores may lie
/// any distance below the best (exact_assignment), since nobody bids; every order is as likely, so no expert is first
/// for ever. Equal draws: the lower expert; equal scores: the lower token. The experts of a call wait for each other,
/// so it runs in one thread. Lewis et al. 2021 (BASE), arXiv:2103.16716; Dai et al. 2022 (StableMoE), arXiv:2204.08396.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/kernel/top_k.hpp>
#include <sluice/router/assigned/assignment_solver.hpp>

#include <algorithm>
#include <numeric>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class greedy_assignment {
public:
  static constexpr random_site site{"greedy_assignment.order"};

  struct tape {
    buffer<double> draw;    ///< [E]
    buffer<index_t> order;  ///< [E]
    buffer<index_t> left;   ///< tokens that nobody has taken, ascending
    buffer<Scalar> score;   ///< of these
    buffer<index_t> taken;  ///< [m] which of these an expert takes

    void reserve(index_t experts, index_t tokens) {
      draw.reserve(experts);
      order.reserve(experts);
      for (auto* ids : {&left, &taken}) ids->reserve(tokens);
      score.reserve(tokens);
    }
  };

  /// expert_of[token] for finite scores [E, m E], with m tokens an expert.
  void assign(const matrix_buffer<Scalar>& scores, const assignment_call& call, tape& t,
              buffer<index_t>& expert_of) const {
    const index_t experts = scores.rows(), tokens = scores.cols(), each = tokens / experts;
    expert_of.assign(tokens, -1);
    if (tokens == 0) return;
    t.draw.resize(experts);
    t.order.resize(experts);
    for (index_t e = 0; e < experts; ++e) t.draw[e] = call.random.uniform(site, call.first_draw + e);
    std::iota(t.order.begin(), t.order.end(), index_t{0});
    std::sort(t.order.begin(), t.order.end(),
              [&](index_t a, index_t b) { return t.draw[a] != t.draw[b] ? t.draw[a] < t.draw[b] : a < b; });
    t.left.resize(tokens);
    std::iota(t.left.begin(), t.left.end(), index_t{0});
    t.taken.resize(each);
    for (const index_t e : t.order) {
      t.score.resize(t.left.size());
      for (index_t i = 0; i < t.left.size(); ++i) t.score[i] = scores(e, t.left[i]);
      kernel::top_k(t.score.data(), t.left.size(), each, t.taken.data());
      for (const index_t i : t.taken) expert_of[t.left[i]] = e;
      const auto end =
          std::remove_if(t.left.begin(), t.left.end(), [&](index_t token) { return expert_of[token] >= 0; });
      t.left.resize(static_cast<index_t>(end - t.left.begin()));
    }
  }
};

}  // namespace sluice::inline SLUICE_ISA
