/// Importance loss: experts should matter equally, summed over a group of tokens.
///
///   importance[e] = sum over t of p[t,e], p = softmax of the clean logits        value = cv2(importance)
///   sparse gates:   sum over t of w[t,e], w = softmax of the noisy logits over the token's assignments
///   chosen:         sum over the t that have an assignment to e of p[t,e], over the sum of those of all experts
///
/// The sparse form is the gate of Shazeer et al. and FastMoE: the plan's weights wherever these are a softmax over the
/// choice (`post`, or `renorm` with scaling 1). It has value and no gradient with one choice a token. Where the weights
/// are the probabilities themselves (`pre`, as in the code of the mixture of attention heads), they are the chosen.
/// With costs, importance[e] is multiplied by that of e: latencies, so that slow experts should matter less. 1 + value
/// is the mean importance loss of SpeechMoE, E sum over e of (mean over t of p[t,e])^2.
/// Groups, padding, NaN and coefficient 0: loss/common.hpp. A group without tokens has value 0.
/// Riquelme et al. 2021, arXiv:2106.05974, appendix A (population variance);
/// Shazeer et al. 2017, arXiv:1701.06538, eq. 6-7 (FastMoE, Tutel: unbiased);
/// You et al. 2023 (ShiftAddViT), arXiv:2306.06446 (costs).
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/loss/common.hpp>

#include <concepts>
#include <span>
#include <vector>

namespace sluice::inline SLUICE_ISA {

enum class importance_source { probabilities, sparse_gates, chosen_probabilities };

struct importance_loss {
  double coefficient = 1;
  importance_source source = importance_source::probabilities;
  variance form = variance::population;
  loss_logits logits = loss_logits::clean;  ///< of the probabilities
  std::vector<double> cost{};               ///< one an expert; empty means 1

  template <std::floating_point Scalar, typename Plan>
  Scalar operator()(const score_signals<Scalar>& seen, const Plan& plan, const routing_context<Scalar>& context,
                    score_gradients<Scalar>& gradients) const {
    return detail::mean_over_groups(*this, seen, plan, context, gradients);
  }

  template <std::floating_point Scalar, typename Plan>
  Scalar group_value(const score_signals<Scalar>& seen, const Plan& plan, const routing_context<Scalar>& context,
                     index_t group, double scale, score_gradients<Scalar>& gradients) const {
    const token_range range = context.group(group, seen.clean.rows());
    const index_t experts = seen.clean.cols();
    gradients.sum_scratch.assign(3 * experts, 0);
    double* sums = gradients.sum_scratch.data();
    if (source == importance_source::sparse_gates) {
      if constexpr (std::derived_from<Plan, sparse_plan<Scalar>>)
        return static_cast<Scalar>(sparse_value(seen, plan, context, range, scale, gradients));
      else
        throw_invalid("importance_loss: only a sparse plan has sparse gates");
    }
    if (source == importance_source::chosen_probabilities) {
      if constexpr (std::derived_from<Plan, sparse_plan<Scalar>>)
        return static_cast<Scalar>(chosen_value(seen, plan, context, range, scale, gradients));
      else
        throw_invalid("importance_loss: only a sparse plan says what was chosen");
    }
    const detail::group_probabilities<Scalar> p(detail::logits_of(seen, logits), context, range,
                                                loss_probability::softmax, gradients.row_scratch);
    p.add_to(sums);
    const double value = differentiate(sums, experts, scale);
    p.backward(sums + experts, detail::logits_of(gradients, logits));
    return static_cast<Scalar>(value);
  }

private:
  /// Returns scale × cv2 of the E sums and puts its derivative behind them.
  double differentiate(double* sums, index_t experts, double scale) const {
    return scale * detail::cv_squared_of_costs(cost, sums, experts, form, sums + experts, scale);
  }

  template <std::floating_point Scalar>
  double sparse_value(const score_signals<Scalar>& seen, const sparse_plan<Scalar>& plan,
                      const routing_context<Scalar>& context, token_range range, double scale,
                      score_gradients<Scalar>& gradients) const {
    const index_t experts = seen.clean.cols();
    double* sums = gradients.sum_scratch.data();
    matrix_buffer<Scalar>& gates = gradients.row_scratch;
    gates.resize(range.size(), experts);
    for (index_t t = range.begin; t < range.end; ++t) {
      const auto own = plan.of_token(t);
      if (context.is_padding(t) || own.empty()) continue;
      Scalar* w = gates.row(t - range.begin);
      for (std::size_t j = 0; j < own.size(); ++j) w[j] = seen.noisy()(t, plan.expert(own[j]));
      kernel::softmax(w, w, static_cast<index_t>(own.size()));
      for (std::size_t j = 0; j < own.size(); ++j) sums[plan.expert(own[j])] += static_cast<double>(w[j]);
    }
    const double value = differentiate(sums, experts, scale);
    const double* c = sums + experts;
    for (index_t t = range.begin; t < range.end; ++t) {
      if (context.is_padding(t)) continue;
      const Scalar* w = gates.row(t - range.begin);
      const auto own = plan.of_token(t);
      double inner = 0;
      for (std::size_t j = 0; j < own.size(); ++j) inner += c[plan.expert(own[j])] * static_cast<double>(w[j]);
      for (std::size_t j = 0; j < own.size(); ++j)
        gradients.noisy_or_clean()(t, plan.expert(own[j])) +=
            static_cast<Scalar>(static_cast<double>(w[j]) * (c[plan.expert(own[j])] - inner));
    }
    return value;
  }

  template <std::floating_point Scalar>
  double chosen_value(const score_signals<Scalar>& seen, const sparse_plan<Scalar>& plan,
                      const routing_context<Scalar>& context, token_range range, double scale,
                      score_gradients<Scalar>& gradients) const {
    const index_t experts = seen.clean.cols();
    double* sums = gradients.sum_scratch.data();
    const auto for_chosen = [&](auto&& f) {
      for (index_t t = range.begin; t < range.end; ++t)
        if (!context.is_padding(t)) f(t, gradients.row_scratch.row(t - range.begin), plan.of_token(t));
    };
    const detail::group_probabilities<Scalar> all(detail::logits_of(seen, logits), context, range,
                                                  loss_probability::softmax, gradients.row_scratch);
    for_chosen([&](index_t, const Scalar* p, std::span<const index_t> own) {
      for (const index_t i : own) sums[plan.expert(i)] += static_cast<double>(p[plan.expert(i)]);
    });
    double total = 0;
    for (index_t e = 0; e < experts; ++e) total += sums[e];
    if (total == 0) return 0;
    double* const c = sums + experts;
    double* const shares = c + experts;
    for (index_t e = 0; e < experts; ++e) shares[e] = sums[e] /= total;
    const double value = differentiate(sums, experts, scale);
    double common = 0;
    for (index_t e = 0; e < experts; ++e) common += c[e] * shares[e];
    for (index_t e = 0; e < experts; ++e) c[e] = (c[e] - common) / total;
    matrix_buffer<Scalar>& dlogits = detail::logits_of(gradients, logits);
    for_chosen([&](index_t t, const Scalar* p, std::span<const index_t> own) {
      double inner = 0;
      for (const index_t i : own) {
        const double pull = c[plan.expert(i)] * static_cast<double>(p[plan.expert(i)]);
        dlogits(t, plan.expert(i)) += static_cast<Scalar>(pull);
        inner += pull;
      }
      for (index_t e = 0; e < experts; ++e) dlogits(t, e) -= static_cast<Scalar>(inner * static_cast<double>(p[e]));
    });
    return value;
  }
};

}  // namespace sluice::inline SLUICE_ISA
