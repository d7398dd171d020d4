/// Sparsity loss: every token's probabilities should be far from even.
///
///   value = mean over t of |p[t]|_1 / (|p[t]|_2 + 1e-9),  p = softmax(L[t])       1 for one-hot, sqrt(E) for even p
///   dp[t,j] = (1/(n + 1e-9) - p[t,j] / (n (n + 1e-9)^2)) / T,  n = |p[t]|_2, |p|_1 being 1;  then the softmax
///
/// SpeechMoE pairs it with its mean importance loss, E sum over e of (mean over t of p[t,e])^2, which is 1 + cv2 of the
/// importance: importance_loss, whose gradient is the same. Published coefficients: 0.1 each.
/// Groups, padding, NaN and coefficient 0: loss/common.hpp. You et al. 2021, "SpeechMoE: Scaling to Large Acoustic
/// Models with Dynamic Routing Mixture of Experts", arXiv:2105.03036; the guard is that of its open implementation.
#pragma once

#include <sluice/loss/common.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

struct sparsity_loss {
  double coefficient = 0.1;
  loss_logits logits = loss_logits::clean;

  template <std::floating_point Scalar, typename Plan>
  Scalar operator()(const score_signals<Scalar>& seen, const Plan& plan, const routing_context<Scalar>& context,
                    score_gradients<Scalar>& gradients) const {
    return detail::mean_over_groups(*this, seen, plan, context, gradients);
  }

  template <std::floating_point Scalar, typename Plan>
  Scalar group_value(const score_signals<Scalar>& seen, const Plan&, const routing_context<Scalar>& context,
                     index_t group, double scale, score_gradients<Scalar>& gradients) const {
    constexpr double guard = 1e-9;
    const token_range range = context.group(group, seen.clean.rows());
    const index_t count = detail::count_tokens(context, range);
    if (count == 0) return 0;
    const index_t experts = seen.clean.cols();
    const double share = scale / static_cast<double>(count);
    const matrix_buffer<Scalar>& read = detail::logits_of(seen, logits);
    matrix_buffer<Scalar>& dlogits = detail::logits_of(gradients, logits);
    matrix_buffer<Scalar>& rows = gradients.row_scratch;  // the token's value, and from column E on p
    rows.resize(range.size(), 2 * experts);
    detail::for_tokens(context, range, experts, [&](index_t t) {
      Scalar* value = rows.row(t - range.begin);
      Scalar* p = value + experts;
      kernel::softmax(read.row(t), p, experts);
      double squares = 0;
      for (index_t e = 0; e < experts; ++e) squares += static_cast<double>(p[e]) * static_cast<double>(p[e]);
      const double norm = std::sqrt(squares), divisor = norm + guard;
      *value = static_cast<Scalar>(1 / divisor);
      // Of dp the part that is the same for all experts goes nowhere through a softmax.
      const double pull = -share / (norm * divisor * divisor);
      for (index_t e = 0; e < experts; ++e) {
        const auto own = static_cast<double>(p[e]);
        dlogits(t, e) += static_cast<Scalar>(own * pull * (own - squares));
      }
    });
    double sum = 0;
    detail::add_rows(context, range, rows, 1, &sum);
    return static_cast<Scalar>(share * sum);
  }
};

}  // namespace sluice::inline SLUICE_ISA
