/// Membership loss: binary cross-entropy of a predictor with what experts choose.
///
///   y[t,e] = 1 if expert e takes token t, else 0
///   value = mean over t and the experts e of its modality of softplus(Z[t,e]) - y[t,e] Z[t,e]
///   dZ = (sigmoid(Z) - y) / number of pairs
///
/// Z are the predictor's logits (router/experts_choose/predicted_choice.hpp). Groups, padding, NaN and coefficient 0:
/// loss/common.hpp. Lin et al. 2024 (MoMa), arXiv:2407.21770.
#pragma once

#include <sluice/core/sparse_plan.hpp>
#include <sluice/kernel/logistic.hpp>
#include <sluice/loss/common.hpp>

namespace sluice::inline SLUICE_ISA {

struct membership_loss {
  double coefficient = 1;

  template <typename Seen, std::floating_point Scalar, typename Gradients>
    requires requires(const Seen& seen, Gradients& gradients) { seen.predicted, gradients.predicted; }
  Scalar operator()(const Seen& seen, const sparse_plan<Scalar>& plan, const routing_context<Scalar>& context,
                    Gradients& gradients) const {
    return detail::mean_over_groups(coefficient, context, plan.tokens(), [&](index_t group, double scale) {
      return group_value(seen, plan, context, group, scale, gradients);
    });
  }

  template <typename Seen, std::floating_point Scalar, typename Gradients>
  Scalar group_value(const Seen& seen, const sparse_plan<Scalar>& plan, const routing_context<Scalar>& context,
                     index_t group, double scale, Gradients& gradients) const {
    const token_range range = context.group(group, plan.tokens());
    index_t pairs = 0;
    for (index_t t = range.begin; t < range.end; ++t)
      if (!context.is_padding(t))
        pairs += seen.modalities->of(seen.modalities->modality(context, t), plan.experts()).count;
    if (pairs == 0) return 0;
    const double share = scale / static_cast<double>(pairs);
    double sum = 0;
    for (index_t t = range.begin; t < range.end; ++t) {
      if (context.is_padding(t)) continue;
      const auto [first, count] = seen.modalities->of(seen.modalities->modality(context, t), plan.experts());
      for (index_t e = first; e < first + count; ++e) {
        const auto z = static_cast<double>(seen.predicted(t, e));
        sum += kernel::softplus(z);
        gradients.predicted(t, e) += static_cast<Scalar>(share * kernel::logistic(z));
      }
      for (const index_t i : plan.of_token(t)) {
        sum -= static_cast<double>(seen.predicted(t, plan.expert(i)));
        gradients.predicted(t, plan.expert(i)) -= static_cast<Scalar>(share);
      }
    }
    return static_cast<Scalar>(share * sum);
  }
};

}  // namespace sluice::inline SLUICE_ISA
