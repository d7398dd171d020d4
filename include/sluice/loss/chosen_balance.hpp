/// Balance loss over what was chosen: as switch_balance, but an expert's share of probability counts its own tokens
/// only.
///
///   value = E * sum over e of f[e] M[e]     f[e] = tokens that chose e / T, a constant
///   M[e] = mean over t of p[t,e] 1[e chosen by t],  p = softmax(L[t] / tau)
///   dL[t,j] = (E / (T tau)) p[t,j] (f[j] 1[j chosen by t] - sum over e chosen by t of f[e] p[t,e])
///
/// For routers that choose many experts with weights p (router/over_training/dense_to_sparse.hpp): M[e] is the mean
/// weight. Where weights are made of noisy logits at a temperature, .logits = noisy and .temperature say so. Choices
/// that capacity dropped count as chosen. No choice at all gives 0. Groups, padding, NaN and coefficient 0:
/// loss/common.hpp. Nie et al. 2021 (EvoMoE), arXiv:2112.14397, released code.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/loss/common.hpp>

namespace sluice::inline SLUICE_ISA {

struct chosen_balance {
  double coefficient = 1e-2;
  loss_logits logits = loss_logits::clean;
  double temperature = 1;

  template <std::floating_point Scalar>
  Scalar operator()(const score_signals<Scalar>& seen, const sparse_plan<Scalar>& plan,
                    const routing_context<Scalar>& context, score_gradients<Scalar>& gradients) const {
    return detail::mean_over_groups(*this, seen, plan, context, gradients);
  }

  /// Throws std::invalid_argument unless the temperature is positive.
  template <std::floating_point Scalar>
  Scalar group_value(const score_signals<Scalar>& seen, const sparse_plan<Scalar>& plan,
                     const routing_context<Scalar>& context, index_t group, double scale,
                     score_gradients<Scalar>& gradients) const {
    if (!is_above(temperature, 0)) throw_invalid("chosen_balance needs a temperature > 0, not ", temperature);
    const token_range range = context.group(group, seen.clean.rows());
    const auto tokens = static_cast<double>(detail::count_tokens(context, range));
    if (tokens == 0) return 0;
    const index_t experts = seen.clean.cols();
    gradients.sum_scratch.assign(2 * experts, 0);
    double* mass = gradients.sum_scratch.data();
    double* c = mass + experts;
    matrix_buffer<Scalar>& rows = gradients.row_scratch;  // p of what was chosen, else 0; and behind it all of p
    rows.resize(range.size(), 2 * experts);
    const matrix_buffer<Scalar>& read = detail::logits_of(seen, logits);
    detail::for_tokens(context, range, experts, [&](index_t t) {
      Scalar* chosen = rows.row(t - range.begin);
      Scalar* p = chosen + experts;
      for (index_t e = 0; e < experts; ++e) chosen[e] = 0;
      for (index_t e = 0; e < experts; ++e) p[e] = read(t, e) / static_cast<Scalar>(temperature);
      kernel::softmax(p, p, experts);
    });
    const auto choose = [&](index_t t, index_t e) {
      rows(t - range.begin, e) = rows(t - range.begin, experts + e);
      c[e] += 1;
    };
    for (index_t t = range.begin; t < range.end; ++t)
      if (!context.is_padding(t))
        for (const index_t i : plan.of_token(t)) choose(t, plan.expert(i));
    for (const dropped_assignment<Scalar>& d : plan.dropped())
      if (d.token >= range.begin && d.token < range.end && !context.is_padding(d.token)) choose(d.token, d.expert);
    detail::add_rows(context, range, rows, experts, mass);
    double value = 0;
    for (index_t e = 0; e < experts; ++e) {
      c[e] *= scale * static_cast<double>(experts) / (tokens * tokens);
      value += c[e] * mass[e];
    }
    matrix_buffer<Scalar>& dlogits = detail::logits_of(gradients, logits);
    detail::for_tokens(context, range, experts, [&](index_t t) {
      const Scalar* chosen = rows.row(t - range.begin);
      const Scalar* p = chosen + experts;
      double inner = 0;
      for (index_t e = 0; e < experts; ++e) inner += c[e] * static_cast<double>(chosen[e]);
      for (index_t e = 0; e < experts; ++e)
        dlogits(t, e) += static_cast<Scalar>(
            (c[e] * static_cast<double>(chosen[e]) - inner * static_cast<double>(p[e])) / temperature);
    });
    return static_cast<Scalar>(value);
  }
};

}  // namespace sluice::inline SLUICE_ISA
