/// Which tokens of a sequence matter so much to the others that they keep all their experts, and which so little that
/// they get none (MC-MoE).
///
///   x [T,D], A [T,T] causal attention, averaged over heads, a row a query
///   importance[j] = |x[j]|_1 s[j] / (T - j);  received: s[j] = sum_i A[i][j];  paid: s[j] = sum_i A[j][i]
///
///   prune_tokens<float>(importance, {.least = 0, .most = 0.02}, sees_experts, keeps_all);
///   context.token_mask = sees_experts;  context.protected_tokens = keeps_all;  // of a skipping_router; one sequence
///
/// The text of the paper takes the attention that a token receives, its released code that which the token pays, which
/// is 1. floor(share T) tokens are marked, the lower token first among equals; NaN is least. Who is both least and most
/// is kept. A token without experts passes as padding does: its output is 0. T = 0 and T = 1 are allowed; decoding a
/// token at a time marks nothing. Huang et al. 2024 (MC-MoE), arXiv:2410.06270.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/types.hpp>

#include <algorithm>
#include <numeric>
#include <span>
#include <vector>

namespace sluice::inline SLUICE_ISA {

enum class attention_share { received, paid };

/// Throws std::invalid_argument unless shapes fit.
template <FloatOrDouble Scalar>
void token_importance(tokens_in<Scalar> x, tokens_in<Scalar> attention, std::span<Scalar> importance,
                      attention_share share = attention_share::received) {
  const index_t T = x.rows();
  if (attention.rows() != T || attention.cols() != T || static_cast<index_t>(importance.size()) != T)
    throw_invalid("the importance of ", importance.size(), " tokens cannot be had of ", T, " tokens and an attention [",
                  attention.rows(), ", ", attention.cols(), "]");
  for (index_t j = 0; j < T; ++j) {
    const Scalar sum = share == attention_share::received ? attention.col(j).sum() : attention.row(j).sum();
    importance[as_size(j)] = x.row(j).cwiseAbs().sum() * sum / static_cast<Scalar>(T - j);
  }
}

/// Sets the flags of the floor(fraction T) tokens of largest importance to 1, the lower token first among equals, and
/// leaves the others as they are. Throws std::invalid_argument unless sizes agree and 0 <= fraction <= 1.
template <FloatOrDouble Scalar>
void mark_most_important(std::span<const Scalar> importance, double fraction, std::span<std::uint8_t> flags) {
  if (importance.size() != flags.size())
    throw_invalid("there are ", importance.size(), " tokens with importance and ", flags.size(), " to mark");
  if (!is_between(fraction, 0.0, 1.0)) throw_invalid("a share of tokens cannot be ", fraction);
  std::vector<index_t> order(importance.size());
  std::iota(order.begin(), order.end(), index_t(0));
  const auto count = static_cast<std::ptrdiff_t>(fraction * static_cast<double>(order.size()));
  std::partial_sort(order.begin(), order.begin() + count, order.end(), largest_first<Scalar>{importance.data()});
  for (auto t = order.begin(); t != order.begin() + count; ++t) flags[as_size(*t)] = 1;
}

struct token_pruning {
  double least = 0;    ///< share of tokens that get no expert
  double most = 0.02;  ///< share that keep all of theirs
};

/// Writes 0 or 1 for every token: whether it is to see experts, and whether it is to keep all it has chosen. Throws
/// std::invalid_argument unless sizes agree and shares are 0 to 1.
template <FloatOrDouble Scalar>
void prune_tokens(std::span<const Scalar> importance, token_pruning shares, std::span<std::uint8_t> sees_experts,
                  std::span<std::uint8_t> keeps_all) {
  std::vector<Scalar> unimportance;
  for (const Scalar& v : importance) unimportance.push_back(is_nan(v) ? std::numeric_limits<Scalar>::infinity() : -v);
  std::fill(sees_experts.begin(), sees_experts.end(), std::uint8_t{0});
  std::fill(keeps_all.begin(), keeps_all.end(), std::uint8_t{0});
  mark_most_important<Scalar>(unimportance, shares.least, sees_experts);
  mark_most_important<Scalar>(importance, shares.most, keeps_all);
  for (std::size_t t = 0; t < sees_experts.size(); ++t) sees_experts[t] = keeps_all[t] != 0 || sees_experts[t] == 0;
}

}  // namespace sluice::inline SLUICE_ISA
