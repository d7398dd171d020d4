/// The losses of StableMoE's first stage.
///
///   stable_balance   value = sum over e of (n_e - n) / n * sum over the tokens t of e of sigmoid(L[t,e])
///                    n_e = tokens of e, dropped ones too, a constant; n = their mean, T / E
///                    dL[t,e] = (n_e - n) / n * s (1 - s) for the expert e of t
///   distillation     value = sum over t of (log sum over e of exp s'[t,e]) - s'[t, expert of t]
///                    ds'[t] = softmax(s'[t]) - 1 at the expert of t
///
/// The first draws tokens away from crowded experts, along the one logit that chose; the second is the cross-entropy of
/// the distilled gate's scores s' with the router's choice, a sum over tokens. Both need stable_router's signals and
/// are 0 in its second stage. Groups: the balance is the mean over groups, of each group's own counts; the distillation
/// one sum. Padding, NaN and coefficient 0: loss/common.hpp. Dai et al. 2022, arXiv:2204.08396.
#pragma once

#include <sluice/core/sparse_plan.hpp>
#include <sluice/loss/common.hpp>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// f(token, expert) for every choice of the tokens of a range that count, kept ones first, then dropped ones.
template <typename Scalar, typename F>
void for_each_choice(const sparse_plan<Scalar>& plan, const routing_context<Scalar>& context, token_range range,
                     F&& f) {
  for (index_t t = range.begin; t < range.end; ++t)
    if (!context.is_padding(t))
      for (const index_t i : plan.of_token(t)) f(t, plan.expert(i));
  for (const dropped_assignment<Scalar>& d : plan.dropped())
    if (d.token >= range.begin && d.token < range.end && !context.is_padding(d.token)) f(d.token, d.expert);
}

}  // namespace detail

struct stable_balance {
  double coefficient = 0.3;

  template <typename Seen, std::floating_point Scalar, typename Gradients>
  Scalar operator()(const Seen& seen, const sparse_plan<Scalar>& plan, const routing_context<Scalar>& context,
                    Gradients& gradients) const {
    if (!seen.is_first_stage) return 0;
    return detail::mean_over_groups(*this, seen, plan, context, gradients);
  }

  template <std::floating_point Scalar>
  Scalar group_value(const score_signals<Scalar>& seen, const sparse_plan<Scalar>& plan,
                     const routing_context<Scalar>& context, index_t group, double scale,
                     score_gradients<Scalar>& gradients) const {
    const token_range range = context.group(group, plan.tokens());
    gradients.sum_scratch.assign(plan.experts(), 0);
    double* const count = gradients.sum_scratch.data();
    detail::for_each_choice(plan, context, range, [&](index_t, index_t e) { count[e] += 1; });
    const double mean = static_cast<double>(detail::count_tokens(context, range)) / static_cast<double>(plan.experts());
    double value = 0;
    detail::for_each_choice(plan, context, range, [&](index_t t, index_t e) {
      const double excess = scale * (count[e] - mean) / mean;
      const auto logit = static_cast<double>(seen.clean(t, e));
      const double s = kernel::logistic(logit);
      value += excess * s;
      gradients.clean(t, e) += static_cast<Scalar>(excess * s * kernel::logistic(-logit));
    });
    return static_cast<Scalar>(value);
  }
};

struct distillation {
  double coefficient = 0.3;

  template <typename Seen, std::floating_point Scalar, typename Gradients>
  Scalar operator()(const Seen& seen, const sparse_plan<Scalar>& plan, const routing_context<Scalar>& context,
                    Gradients& gradients) const {
    detail::check_coefficient(coefficient);
    if (coefficient == 0 || !seen.is_first_stage) return 0;
    const index_t experts = plan.experts();
    matrix_buffer<Scalar>& p = gradients.row_scratch;
    p.resize(1, experts);
    double value = 0;
    detail::for_each_choice(plan, context, {0, plan.tokens()}, [&](index_t t, index_t chosen) {
      const Scalar* const scores = seen.distilled.row(t);
      const auto e = kernel::exponentiate(scores, p.data(), experts);
      value += static_cast<double>(e.maximum - scores[chosen]) + std::log(static_cast<double>(e.sum));
      for (index_t j = 0; j < experts; ++j)
        gradients.distilled(t, j) +=
            static_cast<Scalar>(coefficient * (static_cast<double>(p.data()[j] / e.sum) - (j == chosen ? 1.0 : 0.0)));
    });
    return static_cast<Scalar>(coefficient * value);
  }
};

}  // namespace sluice::inline SLUICE_ISA
