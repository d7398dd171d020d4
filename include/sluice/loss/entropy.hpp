/// Entropy loss: minus the entropy of the mean routing distribution of a group, so that minimising it spreads tokens.
///
///   q[e] = mean over t of softmax(L[t])[e]        value = sum over e of q[e] log q[e]  >= -log E
///
/// 0 log 0 is 0. A negative coefficient turns it round and concentrates the mean distribution (HMoE's entropy term).
/// Groups, padding, NaN and coefficient 0: loss/common.hpp. Csordas et al. 2023 (sigma-MoE), arXiv:2310.10837.
#pragma once

#include <sluice/loss/common.hpp>

namespace sluice::inline SLUICE_ISA {

struct entropy_loss {
  double coefficient = 1e-2;
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
    const auto tokens = static_cast<double>(detail::count_tokens(context, range));
    if (tokens == 0) return 0;
    const index_t experts = seen.clean.cols();
    gradients.sum_scratch.assign(2 * experts, 0);
    double* q = gradients.sum_scratch.data();
    double* c = q + experts;
    const detail::group_probabilities<Scalar> p(detail::logits_of(seen, logits), context, range,
                                                loss_probability::softmax, gradients.row_scratch);
    p.add_to(q);
    double value = 0;
    for (index_t e = 0; e < experts; ++e) {
      q[e] /= tokens;
      if (q[e] == 0) continue;  // every p[t,e] is 0 too, and with it the gradient
      value += q[e] * std::log(q[e]);
      c[e] = scale * (std::log(q[e]) + 1) / tokens;
    }
    p.backward(c, detail::logits_of(gradients, logits));
    return static_cast<Scalar>(scale * value);
  }
};

}  // namespace sluice::inline SLUICE_ISA
