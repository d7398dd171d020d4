/// Router z-loss: keeps logits small, so that their exponentials stay well rounded.
///
///   value = mean over t of (log sum over e of exp L[t,e])^2        dL[t,j] = 2/T lse[t] p[t,j]
///
/// Adding a constant to a row changes it (that is its purpose); logits of 0 give (log E)^2.
/// Groups, padding, NaN and coefficient 0: loss/common.hpp. Zoph et al. 2022 (ST-MoE), arXiv:2202.08906, eq. 5.
#pragma once

#include <sluice/loss/common.hpp>

namespace sluice::inline SLUICE_ISA {

struct router_z_loss {
  double coefficient = 1e-3;
  loss_logits logits = loss_logits::clean;

  template <std::floating_point Scalar, typename Plan>
  Scalar operator()(const score_signals<Scalar>& seen, const Plan& plan, const routing_context<Scalar>& context,
                    score_gradients<Scalar>& gradients) const {
    return detail::mean_over_groups(*this, seen, plan, context, gradients);
  }

  template <std::floating_point Scalar, typename Plan>
  Scalar group_value(const score_signals<Scalar>& seen, const Plan&, const routing_context<Scalar>& context,
                     index_t group, double scale, score_gradients<Scalar>& gradients) const {
    const token_range range = context.group(group, seen.clean.rows());
    const index_t tokens = detail::count_tokens(context, range);
    if (tokens == 0) return 0;
    const matrix_buffer<Scalar>& scores = detail::logits_of(seen, logits);
    matrix_buffer<Scalar>& dscores = detail::logits_of(gradients, logits);
    const index_t experts = scores.cols();
    matrix_buffer<Scalar>& rows = gradients.row_scratch;  // the squared log-sum-exp, then the row's exponentials
    rows.resize(range.size(), experts + 1);
    const double share = scale / static_cast<double>(tokens);
    detail::for_tokens(context, range, experts, [&](index_t t) {
      Scalar* row = rows.row(t - range.begin);
      const auto e = kernel::exponentiate(scores.row(t), row + 1, experts);
      const Scalar lse = e.maximum + std::log(e.sum);
      row[0] = lse * lse;
      for (index_t j = 0; j < experts; ++j)
        dscores(t, j) +=
            static_cast<Scalar>(2 * share * static_cast<double>(lse) * static_cast<double>(row[1 + j] / e.sum));
    });
    double sum = 0;
    detail::add_rows(context, range, rows, 1, &sum);
    return static_cast<Scalar>(share * sum);
  }
};

}  // namespace sluice::inline SLUICE_ISA
