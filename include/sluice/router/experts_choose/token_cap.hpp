/// Expert choice in which a token has at most b experts: prices make crowded tokens dear.
///
///   A [E,T] = arg max of  sum of p[t,e] A[e,t] + lambda H(A)      H(A) = - sum of A log A
///   where expert e takes C[e] tokens, sum over t of A[e,t] = C[e]; token t has sum over e of A[e,t] <= b; 0 <= A <= 1
///   A[e,t] = min(1, exp((p[t,e] + price[t]) / lambda + u[e])), price[t] <= 0
///
/// Two projections take turns, as in Dykstra's method: u[e] so that an expert has its C[e], price[t] so that a token
/// has b or less. They are exact, the bound 1 included, one sorting of the largest numbers each; it ends when no price
/// moves by 1e-4 lambda, or after `iterations` rounds. Then experts choose by p + price, which is the order of A in
/// every row, in turns: one token each, the best that has room left. So b is kept even where A has not converged; where
/// A is a matrix of zeros and ones, as it nearly is for small lambda, the choice is A. If C E > b T, or if turns end
/// badly, slots stay empty.
///
/// Where no token has more than b experts to begin with, nothing is computed. Otherwise a round takes 2 T E
/// exponentials in double, a selection of C[e] from T for every expert and one of b + 1 from E for every token; a
/// hundred rounds are 200 exponentials and selections a pair, where a softmax takes one exponential of half the size:
/// the mathematics of this router, a hundred times the cost of plain expert choice. Scores are numbers: who calls
/// leaves out tokens with NaN. A group without tokens has no prices. Zhou et al. 2022, arXiv:2202.09368,
/// section 3.2 (lambda 0.001, at most 100 rounds; top-C of A).
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/error.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/kernel/top_k.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

namespace sluice::inline SLUICE_ISA {

struct token_cap {
  index_t most = 0;  ///< b, experts a token may have; 0: any number
  double lambda = 1e-3;
  index_t iterations = 100;

  bool limits(index_t experts) const noexcept { return most > 0 && most < experts; }

  /// Throws std::invalid_argument if an option makes no sense.
  void validate() const {
    if (most < 0 || iterations < 0 || is_nan(lambda) || !(lambda >= 1e-6) || lambda > 1e6)
      throw_invalid("a cap on a token's experts needs a number >= 0, rounds >= 0 and lambda from 1e-6 to 1e6, not ",
                    most, ", ", iterations, " and ", lambda);
  }
};

/// The prices of the tokens of one group, and memory for them.
class token_prices {
public:
  /// p(i, e) is the score of the group's i-th token, capacity(e) <= tokens.
  template <typename Score, typename Capacity>
  void settle(const token_cap& cap, index_t tokens, index_t experts, Score p, Capacity capacity,
              const executor_ref& executor) {
    price_.assign(tokens, 0);
    before_.resize(tokens);
    level_.resize(experts);
    by_expert_.resize(experts, tokens);
    by_token_.resize(tokens, experts);
    resize_scratch(tokens, experts);
    executor.parallel_each(tokens, 4 * experts, [&](index_t i) {
      for (index_t e = 0; e < experts; ++e) by_expert_(e, i) = by_token_(i, e) = p(i, e) / cap.lambda;
    });
    for (index_t round = 0; round < cap.iterations; ++round) {
      std::copy(price_.begin(), price_.end(), before_.begin());
      executor.parallel_blocks(experts, 1, 20 * tokens, [&](index_t e, index_t) {
        double* numbers = expert_scratch_.row(e);
        for (index_t i = 0; i < tokens; ++i) numbers[i] = by_expert_(e, i) + price_[i];
        level_[e] = level(numbers, tokens, capacity(e), expert_ids_.row(e));
      });
      executor.parallel_blocks(tokens, token_block, 20 * experts, [&](index_t begin, index_t end) {
        double* numbers = token_scratch_.row(begin / token_block);
        index_t* ids = token_ids_.row(begin / token_block);
        for (index_t i = begin; i < end; ++i) {
          for (index_t e = 0; e < experts; ++e) numbers[e] = by_token_(i, e) + level_[e];
          price_[i] = (std::min)(level(numbers, experts, cap.most, ids), 0.0);
        }
      });
      double moved = 0;
      for (index_t i = 0; i < tokens; ++i) moved = (std::max)(moved, (std::abs)(price_[i] - before_[i]));
      if (moved < 1e-4) break;
    }
    for (double& price : price_.span()) price *= cap.lambda;
  }

  /// Room for any group of so many tokens.
  void reserve(index_t tokens, index_t experts) {
    for (auto* numbers : {&price_, &before_}) numbers->reserve(tokens);
    level_.reserve(experts);
    by_expert_.reserve(experts, tokens);
    by_token_.reserve(tokens, experts);
    expert_scratch_.reserve(experts, 2 * tokens);
    expert_ids_.reserve(experts, tokens);
    token_scratch_.reserve((tokens + token_block - 1) / token_block, 2 * experts);
    token_ids_.reserve((tokens + token_block - 1) / token_block, experts);
  }

  /// What to add to the scores of the group's i-th token.
  double operator[](index_t i) const noexcept { return price_[i]; }

private:
  static constexpr index_t token_block = 32;

  void resize_scratch(index_t tokens, index_t experts) {
    expert_scratch_.resize(experts, 2 * tokens);
    expert_ids_.resize(experts, tokens);
    token_scratch_.resize((tokens + token_block - 1) / token_block, 2 * experts);
    token_ids_.resize((tokens + token_block - 1) / token_block, experts);
  }

  /// u with sum over i of min(1, exp(x[i] + u)) = total, for 1 <= total <= count. Changes x, which has room for 2 count
  /// numbers, and ids, for total.
  static double level(double* x, index_t count, index_t total, index_t* ids) {
    kernel::top_k(x, count, total, ids);
    double largest = x[ids[total - 1]];
    if (total == count) return -largest;
    double* const best = x + count;
    for (index_t j = 0; j < total; ++j) {
      best[j] = x[ids[j]];
      x[ids[j]] = std::numeric_limits<double>::lowest();
    }
    // The exponentials of what is surely below 1, then of one more at a time.
    const auto rest = kernel::sum_exponentials(x, count);
    double sum = rest.sum * std::exp(rest.maximum - largest);
    double u = -largest;
    for (index_t whole = total - 1; whole >= 0; --whole) {  // as if the first `whole` were at 1
      sum = sum * std::exp(largest - best[whole]) + 1;
      largest = best[whole];
      const double next = std::log(static_cast<double>(total - whole)) - largest - std::log(sum);
      if (largest + next > 0) break;
      u = next;
    }
    return u;
  }

  buffer<double> price_, before_, level_;
  matrix_buffer<double> by_expert_, by_token_;     ///< [E,T] and [T,E] p / lambda
  matrix_buffer<double> expert_scratch_;           ///< [E,2T]
  matrix_buffer<double> token_scratch_;            ///< [blocks of tokens, 2E]
  matrix_buffer<index_t> expert_ids_, token_ids_;  ///< [E,T] and [blocks of tokens, E] scratch
};

}  // namespace sluice::inline SLUICE_ISA
