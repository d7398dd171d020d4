/// Makes the experts of a cluster alike to the router, and clusters unlike each other.
///
///   p = softmax(L[t]); clusters of n experts, E/n of them; m[c] = mean of p over cluster c, m = mean of m[c] = 1/E
///   value = mean over t of ( mean over c of Var of p within c  -  between * Var of m[c] )        population variances
///   dp[t,j] = 2 / (E T) (p[j] - m[c] - between (m[c] - m)),  then the softmax's             c the cluster of j
///
/// A token's probabilities are drawn together within clusters and apart between them, so that any expert of a cluster
/// will do (gate/cluster_dropout.hpp). Equal logits within each cluster: the first term is 0. Cluster sizes must divide
/// E. Groups, padding, NaN and coefficient 0: loss/common.hpp.
///
/// This is a reading of the "variance-based constraints" of MoEC, whose exact form and coefficients were not to be had;
/// the paper's name is left to that. Xie et al. 2022, "MoEC: Mixture of Expert Clusters", arXiv:2207.09094.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/loss/common.hpp>

namespace sluice::inline SLUICE_ISA {

struct cluster_variance {
  double coefficient = 1e-2;
  index_t cluster = 1;  ///< n
  double between = 0;
  loss_logits logits = loss_logits::clean;

  template <std::floating_point Scalar, typename Plan>
  Scalar operator()(const score_signals<Scalar>& seen, const Plan& plan, const routing_context<Scalar>& context,
                    score_gradients<Scalar>& gradients) const {
    return detail::mean_over_groups(*this, seen, plan, context, gradients);
  }

  /// Throws std::invalid_argument unless n divides E.
  template <std::floating_point Scalar, typename Plan>
  Scalar group_value(const score_signals<Scalar>& seen, const Plan&, const routing_context<Scalar>& context,
                     index_t group, double scale, score_gradients<Scalar>& gradients) const {
    const token_range range = context.group(group, seen.clean.rows());
    const index_t tokens = detail::count_tokens(context, range), experts = seen.clean.cols();
    if (cluster < 1 || experts % cluster != 0)
      throw_invalid("cluster_variance: E = ", experts, " experts do not make clusters of ", cluster);
    if (!is_finite(between)) throw_invalid("cluster_variance needs a finite weight between clusters, not ", between);
    if (tokens == 0) return 0;
    const matrix_buffer<Scalar>& scores = detail::logits_of(seen, logits);
    matrix_buffer<Scalar>& dscores = detail::logits_of(gradients, logits);
    matrix_buffer<Scalar>& rows = gradients.row_scratch;  // the token's value, then its probabilities
    rows.resize(range.size(), experts + 1);
    const double share = scale / static_cast<double>(tokens);
    const auto n = static_cast<double>(cluster), all = static_cast<double>(experts);
    detail::for_tokens(context, range, experts, [&](index_t t) {
      Scalar* const row = rows.row(t - range.begin);
      Scalar* const p = row + 1;
      kernel::softmax(scores.row(t), p, experts);
      const auto mean_of = [&](index_t first) {
        double sum = 0;
        for (index_t e = first; e < first + cluster; ++e) sum += static_cast<double>(p[e]);
        return sum / n;
      };
      double value = 0, inner = 0;
      const auto slope = [&](index_t e, double mean) {  // of the value by p[e]
        return 2 / all * (static_cast<double>(p[e]) - mean - between * (mean - 1 / all));
      };
      for (index_t first = 0; first < experts; first += cluster) {
        const double mean = mean_of(first);
        value -= between * n / all * (mean - 1 / all) * (mean - 1 / all);
        for (index_t e = first; e < first + cluster; ++e) {
          const double apart = static_cast<double>(p[e]) - mean;
          value += apart * apart / all;
          inner += slope(e, mean) * static_cast<double>(p[e]);
        }
      }
      row[0] = static_cast<Scalar>(value);
      for (index_t first = 0; first < experts; first += cluster) {
        const double mean = mean_of(first);
        for (index_t e = first; e < first + cluster; ++e)
          dscores(t, e) += static_cast<Scalar>(share * static_cast<double>(p[e]) * (slope(e, mean) - inner));
      }
    });
    double sum = 0;
    detail::add_rows(context, range, rows, 1, &sum);
    return static_cast<Scalar>(share * sum);
  }
};

}  // namespace sluice::inline SLUICE_ISA
