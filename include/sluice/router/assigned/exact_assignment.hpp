/// Balanced assignment, exactly: m of the N = m E tokens an expert, with the largest sum of scores that there is.
///
///   maximise sum over tokens of s[expert of t, t]    subject to m tokens an expert
///
/// Tokens come in one by one. Each takes the cheapest way into the experts' lists: it pushes out a token that pushes
/// out another, and so on, until one finds room. That is the shortest path among E experts, where the way from one to
/// another costs what its cheapest token loses by moving; with every token that is in, the assignment is the best for
/// these. Work grows like N (E^2 + moves N E): a yardstick for the auction, and its replacement where groups are small.
/// Sums are made in double. Equal sums: whichever the ways in prefer, lower experts first.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/router/assigned/assignment_solver.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class exact_assignment {
public:
  struct tape {
    matrix_buffer<double> loss;    ///< [E,E] what the cheapest token of one loses by moving to the other
    matrix_buffer<index_t> moved;  ///< [E,E] which token that is; -1: there is none
    buffer<double> cost;           ///< [E] of the cheapest way so far
    buffer<index_t> previous;      ///< [E] the expert before on that way; -1: it begins here
    buffer<index_t> load;          ///< [E]

    void reserve(index_t experts, index_t) {
      loss.reserve(experts, experts);
      moved.reserve(experts, experts);
      cost.reserve(experts);
      for (auto* numbers : {&previous, &load}) numbers->reserve(experts);
    }
  };

  /// expert_of[token] for finite scores [E, m E], with m tokens an expert.
  void assign(const matrix_buffer<Scalar>& scores, const assignment_call&, tape& t, buffer<index_t>& expert_of) const {
    const index_t experts = scores.rows(), tokens = scores.cols(), each = tokens / experts;
    expert_of.assign(tokens, -1);
    if (tokens == 0) return;
    t.load.assign(experts, 0);
    t.loss.resize(experts, experts);
    t.moved.resize(experts, experts);
    std::fill_n(t.moved.data(), t.moved.size(), index_t{-1});
    t.cost.resize(experts);
    t.previous.resize(experts);
    const auto [least, most] = std::minmax_element(scores.data(), scores.data() + scores.size());
    // Rounding must not make a circle look cheaper than standing still.
    const double noise = 1e-12 * (static_cast<double>(*most) - static_cast<double>(*least));
    for (index_t token = 0; token < tokens; ++token) {
      find_ways(scores, token, noise, t);
      index_t e = -1;
      for (index_t other = 0; other < experts; ++other)
        if (t.load[other] < each && (e < 0 || t.cost[other] < t.cost[e])) e = other;
      ++t.load[e];
      for (index_t before = t.previous[e]; before >= 0; e = before, before = t.previous[e])
        expert_of[t.moved(before, e)] = e;
      expert_of[token] = e;
      update_losses(scores, token, expert_of, t);
    }
  }

private:
  void find_ways(const matrix_buffer<Scalar>& scores, index_t token, double noise, tape& t) const {
    const index_t experts = scores.rows();
    for (index_t e = 0; e < experts; ++e) {
      t.cost[e] = -static_cast<double>(scores(e, token));
      t.previous[e] = -1;
    }
    bool shortened = true;
    for (index_t pass = 0; pass < experts && shortened; ++pass) {
      shortened = false;
      for (index_t from = 0; from < experts; ++from)
        for (index_t to = 0; to < experts; ++to) {
          if (t.moved(from, to) < 0 || !(t.cost[from] + t.loss(from, to) < t.cost[to] - noise)) continue;
          t.cost[to] = t.cost[from] + t.loss(from, to);
          t.previous[to] = from;
          shortened = true;
        }
    }
  }

  /// After a token has come in: all losses anew, of tokens 0 .. last.
  static void update_losses(const matrix_buffer<Scalar>& scores, index_t last, const buffer<index_t>& expert_of,
                            tape& t) {
    std::fill_n(t.moved.data(), t.moved.size(), index_t{-1});
    for (index_t token = 0; token <= last; ++token) {
      const index_t from = expert_of[token];
      for (index_t to = 0; to < scores.rows(); ++to) {
        if (to == from) continue;
        const double loss = static_cast<double>(scores(from, token)) - static_cast<double>(scores(to, token));
        if (t.moved(from, to) >= 0 && !(loss < t.loss(from, to))) continue;
        t.loss(from, to) = loss;
        t.moved(from, to) = token;
      }
    }
  }
};

}  // namespace sluice::inline SLUICE_ISA
