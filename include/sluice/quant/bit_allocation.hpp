/// How many bits each expert of a layer gets, so that the layer loses least within a budget (MC-MoE).
///
///   cost[i][j] = (n_i / sum n)^a (w_i / sum w)^b error[i][j]^c     expert i, j bits: 1 .. B
///   minimise sum_i cost[i][bits_i]   with   sum_i bits_i <= budget,  one expert or more at 2 bits, one or more at 3
///
///   n tokens and w summed weights of the experts over calibration tokens; error: quant/expert_sensitivity.hpp
///
/// The integer program is solved exactly, by a table over experts, bits spent and what has been seen at 2 and 3 bits;
/// among equal sums the first expert that differs gets fewer bits. At least one expert each at 2 and at 3 bits is part
/// of the published program and can be left out (`everything_used`). Exponents are 1, 1.5 and 1 as in the released
/// solver; the text says 1, 1.5 and 2. Where no expert has tokens or weight all count alike. Throws
/// std::invalid_argument for shapes that do not fit, for numbers below 0, NaN or infinity, and where the budget is
/// below the least that is possible: E + 3 bits. Huang et al. 2024, "MC-MoE: Mixture Compressor for Mixture-of-Experts
/// LLMs Gains More", arXiv:2410.06270.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/types.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct allocation_options {
  double token_exponent = 1;     ///< a
  double weight_exponent = 1.5;  ///< b
  double error_exponent = 1;     ///< c
  bool everything_used = true;   ///< at least one expert at 2 bits and one at 3
};

struct bit_allocation {
  std::vector<index_t> bits;  ///< [E], 1 or more
  double cost = 0;
};

namespace detail {

inline void check_all_usable(std::span<const double> values, const char* what) {
  for (const double value : values)
    if (!is_at_least(value, 0.0)) throw_invalid(what, " of experts are 0 or more, not ", value);
}

/// (v / sum of all)^exponent, all 1 where the sum is 0.
inline std::vector<double> powered_shares(std::span<const double> values, double exponent) {
  double sum = 0;
  for (const double v : values) sum += v;
  std::vector<double> shares;
  for (const double v : values) shares.push_back(sum > 0 ? std::pow(v / sum, exponent) : 1.0);
  return shares;
}

}  // namespace detail

/// cost [E, B] of giving expert i j + 1 bits.
inline matrix<double> allocation_costs(std::span<const double> tokens, std::span<const double> weights,
                                       const matrix<double>& error, const allocation_options& o = {}) {
  const auto experts = static_cast<std::size_t>(error.rows());
  if (tokens.size() != experts || weights.size() != experts)
    throw_invalid("errors of ", error.rows(), " experts have tokens of ", tokens.size(), " and weights of ",
                  weights.size());
  if (!is_at_least(o.token_exponent, 0.0) || !is_at_least(o.weight_exponent, 0.0) ||
      !is_at_least(o.error_exponent, 0.0))
    throw_invalid("costs have finite exponents >= 0, not ", o.token_exponent, " of tokens, ", o.weight_exponent,
                  " of weights and ", o.error_exponent, " of errors");
  detail::check_all_usable(tokens, "tokens");
  detail::check_all_usable(weights, "weights");
  detail::check_all_usable({error.data(), as_size(error.size())}, "errors");
  const auto token_share = detail::powered_shares(tokens, o.token_exponent);
  const auto weight_share = detail::powered_shares(weights, o.weight_exponent);
  matrix<double> cost(error.rows(), error.cols());
  for (index_t i = 0; i < cost.rows(); ++i)
    for (index_t j = 0; j < cost.cols(); ++j)
      cost(i, j) = token_share[as_size(i)] * weight_share[as_size(i)] * std::pow(error(i, j), o.error_exponent);
  return cost;
}

/// The bits with the least sum of cost [E, B]; column j is j + 1 bits.
inline bit_allocation allocate_bits(const matrix<double>& cost, index_t budget, bool everything_used = true) {
  const index_t experts = cost.rows(), choices = cost.cols();
  if (experts < 1 || choices < 1 || (everything_used && (experts < 2 || choices < 3)))
    throw_invalid("bits cannot be given to ", experts, " experts of ", choices, " choices",
                  everything_used ? ", one at 2 and one at 3 bits" : "");
  const index_t least = experts + (everything_used ? 3 : 0);
  if (budget < least) throw_invalid(experts, " experts need a budget of ", least, " bits or more, not ", budget);
  detail::check_all_usable({cost.data(), as_size(cost.size())}, "costs");
  if (cost.maxCoeff() > 1e300 / static_cast<double>(experts))
    throw_invalid("costs up to ", cost.maxCoeff(), " of ", experts, " experts are too large to be added up");
  budget = (std::min)(budget, experts * choices);

  // best[i][spent][seen]: of the experts i .. E - 1 with so many bits left to spend, after what the others have used.
  constexpr double never = (std::numeric_limits<double>::max)();
  constexpr index_t states = 4;
  const index_t wanted = everything_used ? 3 : 0;
  const auto seen_with = [](index_t seen, index_t bits) { return seen | (bits == 2 ? 1 : bits == 3 ? 2 : 0); };
  matrix<double> best = matrix<double>::Constant(experts + 1, (budget + 1) * states, never);
  for (index_t left = 0; left <= budget; ++left)
    for (index_t seen = 0; seen < states; ++seen)
      if ((seen & wanted) == wanted) best(experts, left * states + seen) = 0;
  for (index_t i = experts - 1; i >= 0; --i)
    for (index_t left = 0; left <= budget; ++left)
      for (index_t seen = 0; seen < states; ++seen)
        for (index_t bits = 1; bits <= (std::min)(choices, left); ++bits) {
          const double rest = best(i + 1, (left - bits) * states + seen_with(seen, bits));
          double& least_cost = best(i, left * states + seen);
          if (rest < never) least_cost = (std::min)(least_cost, cost(i, bits - 1) + rest);
        }

  bit_allocation result;
  result.cost = best(0, budget * states);
  for (index_t i = 0, left = budget, seen = 0; i < experts; ++i)
    for (index_t bits = 1; bits <= (std::min)(choices, left); ++bits) {
      const double rest = best(i + 1, (left - bits) * states + seen_with(seen, bits));
      if (rest >= never || cost(i, bits - 1) + rest > best(i, left * states + seen)) continue;
      result.bits.push_back(bits);
      left -= bits;
      seen = seen_with(seen, bits);
      break;
    }
  return result;
}

}  // namespace sluice::inline SLUICE_ISA
