/// Balanced assignment by auction: every expert buys exactly m of the N = m E tokens, bidding for those that it scores
/// high.
///
///   scores s [E,N]   step = max((max s - min s) / 50, 1e-4)   prices c [N] start at 0   v = s - c
///   a round   every expert finds its m + 1 best tokens by v and bids for m of them: v - (the last's v) + step
///             who held a token after the round before bids exactly `step` for it, whatever else it would bid
///             the highest bid takes the token (the lower expert among equals), and c rises by it
///             tokens without a bid are free, and v of a held token counts as max s for its holder
///   until every token has a bid; then an expert's m best are its tokens
///
/// From round 100 on holders' bids are no longer replaced and held tokens keep their own score: quicker, if worse. The
/// source has no other end; here 1000 rounds are the last. Whoever has no token then, or one twice, which ties can
/// bring about, is put right: of two experts the lower keeps the token, and tokens that are left go one by one to the
/// expert with room that scores them highest. The sum of the scores is then within N * step of the best
/// (exact_assignment). Adding a number to all scores of a token changes nothing. Rounds take E selections of m + 1 from
/// N, up to hundreds of times as much as a top-k softmax. Experts bid in parallel; equal bits for any thread count.
/// Lewis et al. 2021 (BASE), arXiv:2103.16716; Bertsekas 1992, "Auction algorithms for network flow problems".
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/kernel/top_k.hpp>
#include <sluice/router/assigned/assignment_solver.hpp>

#include <algorithm>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// Gives every token that has no expert yet to the one with room that scores it highest.
template <typename Scalar>
void assign_the_rest(const matrix_buffer<Scalar>& scores, index_t most, buffer<index_t>& load,
                     buffer<index_t>& expert_of) {
  for (index_t token = 0; token < scores.cols(); ++token) {
    if (expert_of[token] >= 0) continue;
    index_t best = -1;
    for (index_t e = 0; e < scores.rows(); ++e)
      if (load[e] < most && (best < 0 || scores(e, token) > scores(best, token))) best = e;
    expert_of[token] = best;
    ++load[best];
  }
}

}  // namespace detail

template <FloatOrDouble Scalar>
class auction {
public:
  struct tape {
    index_t rounds = 0;             ///< before the one in which every token had a bid
    matrix_buffer<Scalar> value;    ///< [E,N]
    matrix_buffer<index_t> wanted;  ///< [E,m+1]
    buffer<Scalar> price;           ///< [N]
    buffer<Scalar> bid;             ///< [N] the highest of this round
    buffer<index_t> bidder;         ///< [N] whose it is; -1: nobody's
    buffer<index_t> holder;         ///< [N] who bid highest in the round before
    buffer<index_t> load;           ///< [E]

    void reserve(index_t experts, index_t tokens) {
      value.reserve(experts, tokens);
      wanted.reserve(experts, tokens / experts + 1);
      for (auto* m : {&price, &bid}) m->reserve(tokens);
      for (auto* ids : {&bidder, &holder}) ids->reserve(tokens);
      load.reserve(experts);
    }
  };

  /// expert_of[token] for finite scores [E, m E], with m tokens an expert.
  void assign(const matrix_buffer<Scalar>& scores, const assignment_call& call, tape& t,
              buffer<index_t>& expert_of) const {
    const index_t experts = scores.rows(), tokens = scores.cols(), each = tokens / experts;
    t.load.assign(experts, 0);
    expert_of.assign(tokens, -1);
    t.rounds = 0;
    if (tokens == 0) return;
    if (experts == 1) return detail::assign_the_rest(scores, each, t.load, expert_of);
    const auto [least, most] = std::minmax_element(scores.data(), scores.data() + scores.size());
    const Scalar largest = *most, step = (std::max)((largest - *least) / 50, Scalar(1e-4));
    t.value = scores;
    t.wanted.resize(experts, each + 1);
    t.price.assign(tokens, Scalar(0));
    t.bid.resize(tokens);
    t.bidder.assign(tokens, -1);
    for (; t.rounds < most_rounds; ++t.rounds) {
      for_experts(call.executor, experts, tokens,
                  [&](index_t e) { kernel::top_k(t.value.row(e), tokens, each + 1, t.wanted.row(e)); });
      if (collect_bids(step, t.rounds < patient_rounds, t)) break;
      for (index_t token = 0; token < tokens; ++token) t.price[token] += t.bid[token];
      for_experts(call.executor, experts, tokens, [&](index_t e) {
        Scalar* const value = t.value.row(e);
        const Scalar* const score = scores.row(e);
        for (index_t token = 0; token < tokens; ++token)
          value[token] = t.bidder[token] == e ? (t.rounds < patient_rounds ? largest : score[token])
                                              : score[token] - t.price[token];
      });
    }
    for (index_t e = 0; e < experts; ++e)
      for (index_t j = 0; j < each; ++j) {
        index_t& owner = expert_of[t.wanted(e, j)];
        if (owner >= 0) continue;
        owner = e;
        ++t.load[e];
      }
    detail::assign_the_rest(scores, each, t.load, expert_of);
  }

private:
  static constexpr index_t patient_rounds = 100;
  static constexpr index_t most_rounds = 1000;

  template <typename F>
  static void for_experts(const executor_ref& executor, index_t experts, index_t tokens, F&& f) {
    executor.for_work(experts * tokens).parallel_for(experts, f);
  }

  /// The highest bid for every token; whether all have one. On entry t.bidder says who holds what.
  bool collect_bids(Scalar step, bool holders_wait, tape& t) const {
    const index_t each = t.wanted.cols() - 1;
    if (!holders_wait) t.bidder.fill(-1);
    t.holder = t.bidder;
    index_t with_bid = 0;
    for (index_t token = 0; token < t.bid.size(); ++token) {
      t.bid[token] = t.holder[token] < 0 ? Scalar(0) : step;
      with_bid += t.holder[token] >= 0;
    }
    for (index_t e = 0; e < t.wanted.rows(); ++e) {
      const index_t* const wanted = t.wanted.row(e);
      const Scalar next = t.value(e, wanted[each]);
      for (index_t j = 0; j < each; ++j) {
        const index_t token = wanted[j];
        if (t.holder[token] == e) continue;  // it has bid
        const Scalar bid = t.value(e, token) - next + step;
        index_t& bidder = t.bidder[token];
        if (bidder >= 0 && !(bid > t.bid[token] || (bid == t.bid[token] && e < bidder))) continue;
        with_bid += bidder < 0;
        bidder = e;
        t.bid[token] = bid;
      }
    }
    return with_bid == t.bid.size();
  }
};

}  // namespace sluice::inline SLUICE_ISA
