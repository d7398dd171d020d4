/// Cluster loss (MoEC): experts of a cluster should be alike to the router, clusters should differ.
///
///   clusters: runs of n experts, C = E / n of them;   p = softmax(L[t]);   m[t,c] = mean of p[t] over cluster c
///   value = mean over t of ( mean over c of Var within c of p[t]  -  between * Var over c of m[t,c] )
///   dp[t,j] = 2 (p[t,j] - m[t,c(j)]) / (C n)  -  2 between (m[t,c(j)] - 1/E) / (C n),  over T;  then the softmax
///
/// Variances are those of populations. Equal logits within every cluster give the first term 0. The abstract of the
/// paper speaks of variance-based constraints at the routing stage, the exact form is not known to us: this is a
/// *reading* of it, and so is the router's part, dropping experts of a cluster.
/// Groups, padding, NaN and coefficient 0: loss/common.hpp.
/// Xie, Huang, Chen, Wei 2022, "MoEC: Mixture of Expert Clusters", arXiv:2207.09094.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/loss/common.hpp>

namespace sluice::inline SLUICE_ISA {

struct cluster_variance_loss {
  double coefficient = 1e-2;
  index_t cluster_size = 1;  ///< n; divides E
  double between = 0;        ///< how much clusters should differ
  loss_logits logits = loss_logits::clean;

  template <std::floating_point Scalar, typename Plan>
  Scalar operator()(const score_signals<Scalar>& seen, const Plan& plan, const routing_context<Scalar>& context,
                    score_gradients<Scalar>& gradients) const {
    return detail::mean_over_groups(*this, seen, plan, context, gradients);
  }

  /// Throws std::invalid_argument unless n >= 1 divides E.
  template <std::floating_point Scalar, typename Plan>
  Scalar group_value(const score_signals<Scalar>& seen, const Plan&, const routing_context<Scalar>& context,
                     index_t group, double scale, score_gradients<Scalar>& gradients) const {
    const token_range range = context.group(group, seen.clean.rows());
    const index_t experts = seen.clean.cols(), n = cluster_size;
    if (n < 1 || experts % n != 0)
      throw_invalid("cluster_variance_loss needs clusters of equal size, not of ", n, " with E = ", experts);
    const index_t count = detail::count_tokens(context, range);
    if (count == 0) return 0;
    const double share = scale / static_cast<double>(count), each = 1 / static_cast<double>(experts);
    const matrix_buffer<Scalar>& read = detail::logits_of(seen, logits);
    matrix_buffer<Scalar>& dlogits = detail::logits_of(gradients, logits);
    matrix_buffer<Scalar>& rows = gradients.row_scratch;  // the token's value, then dp, and from column E on p
    rows.resize(range.size(), 2 * experts);
    detail::for_tokens(context, range, experts, [&](index_t t) {
      Scalar* const dp = rows.row(t - range.begin);
      Scalar* const p = dp + experts;
      kernel::softmax(read.row(t), p, experts);
      double value = 0, inner = 0;
      for (index_t first = 0; first < experts; first += n) {
        double mean = 0;
        for (index_t e = first; e < first + n; ++e) mean += static_cast<double>(p[e]);
        mean /= static_cast<double>(n);
        // 1/E is the mean over clusters of their means.
        value -= between * (mean - each) * (mean - each) * static_cast<double>(n) * each;
        for (index_t e = first; e < first + n; ++e) {
          const auto own = static_cast<double>(p[e]);
          value += (own - mean) * (own - mean) * each;
          const double slope = 2 * each * (own - mean - between * (mean - each));
          dp[e] = static_cast<Scalar>(slope);
          inner += own * slope;
        }
      }
      for (index_t e = 0; e < experts; ++e)
        dlogits(t, e) += static_cast<Scalar>(share * static_cast<double>(p[e]) * (static_cast<double>(dp[e]) - inner));
      *dp = static_cast<Scalar>(value);
    });
    double sum = 0;
    detail::add_rows(context, range, rows, 1, &sum);
    return static_cast<Scalar>(share * sum);
  }
};

}  // namespace sluice::inline SLUICE_ISA
