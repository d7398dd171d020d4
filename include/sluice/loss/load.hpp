/// Load loss: experts should be chosen equally often, made differentiable by the noise that the router added.
///
///   q[t,e] = Phi((a[t,e] - tau[t,e]) / s[t,e])      how likely e is chosen if its own noise is drawn anew
///   load[e] = sum over t of q[t,e]                  value = cv2(load)
///
///   form                a                        tau                                       s
///   fixed_noise         clean logit              k-th largest noisy logit                  sigma           V-MoE
///   learned_noise       clean logit              k-th; for the chosen the (k+1)-th of them noise_std[t,e]  Shazeer
///   scores_over_logits  softmax of clean logits  k-th largest noisy logit                  sigma           Tutel
///
/// Gradients flow into a, into the noisy logit that set the threshold, and into s where it is learned:
///   da += c phi(u) / s,  dtau -= c phi(u) / s,  ds -= c u phi(u) / s,   u = (a - tau) / s,  c = d value / d load[e]
/// With k = E the learned form counts the assignments of positive weight and has no gradient. Tutel's own loss is half
/// of this plus half of importance_loss, both with variance::unbiased.
///
/// Without noise (inference, deviation 0) there is nothing to differentiate: the value is 0 and nothing is read. Equal
/// logits: the lower index ranks first. A learned scale that rounded to 0 makes q a step without gradient.
/// Groups, padding, NaN and coefficient 0: loss/common.hpp.
/// Riquelme et al. 2021, arXiv:2106.05974, appendix A; Shazeer et al. 2017, arXiv:1701.06538, eq. 8-11.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/kernel/order.hpp>
#include <sluice/loss/common.hpp>

#include <numbers>

namespace sluice::inline SLUICE_ISA {

enum class load_form { fixed_noise, learned_noise, scores_over_logits };

struct load_loss {
  double coefficient = 1;
  load_form noise = load_form::fixed_noise;
  variance form = variance::population;

  template <std::floating_point Scalar>
  Scalar operator()(const score_signals<Scalar>& seen, const sparse_plan<Scalar>& plan,
                    const routing_context<Scalar>& context, score_gradients<Scalar>& gradients) const {
    return detail::mean_over_groups(*this, seen, plan, context, gradients);
  }

  /// Throws std::invalid_argument if the router's noise is not of the form that was asked for.
  template <std::floating_point Scalar>
  Scalar group_value(const score_signals<Scalar>& seen, const sparse_plan<Scalar>& plan,
                     const routing_context<Scalar>& context, index_t group, double scale,
                     score_gradients<Scalar>& gradients) const {
    if (!seen.has_noise) return 0;
    validate(seen);
    const token_range range = context.group(group, seen.clean.rows());
    const index_t experts = seen.clean.cols();
    gradients.sum_scratch.assign(2 * experts, 0);
    double* load = gradients.sum_scratch.data();
    if (noise == load_form::learned_noise && seen.top_k == experts) {
      for (index_t t = range.begin; t < range.end; ++t)
        for (const index_t i : plan.of_token(t)) load[plan.expert(i)] += plan.weight(i) > 0;
      return static_cast<Scalar>(scale * detail::cv_squared(load, experts, form, load + experts));
    }
    matrix_buffer<Scalar>& rows = gradients.row_scratch;  // q, and behind it the softmax that Tutel compares
    rows.resize(range.size(), 2 * experts);
    detail::for_tokens(context, range, experts, [&](index_t t) {
      Scalar* q = rows.row(t - range.begin);
      if (noise == load_form::scores_over_logits) kernel::softmax(seen.clean.row(t), q + experts, experts);
      for_terms(seen, q + experts, t,
                [&](index_t e, const term& own) { q[e] = static_cast<Scalar>(probability(own)); });
    });
    detail::add_rows(context, range, rows, experts, load);
    const double value = detail::cv_squared(load, experts, form, load + experts);
    detail::for_tokens(context, range, experts, [&](index_t t) {
      Scalar* row = rows.row(t - range.begin);
      for_terms(seen, row + experts, t, [&](index_t e, const term& own) {
        row[e] = 0;
        if (own.std == 0) return;
        const double slope = scale * load[experts + e] * density(own) / own.std;
        row[e] = static_cast<Scalar>(slope);
        gradients.noisy_or_clean()(t, own.threshold) -= static_cast<Scalar>(slope);
        if (noise == load_form::learned_noise)
          gradients.noise_std(t, e) -= static_cast<Scalar>(slope * own.difference / own.std);
      });
      add_compared(row, row + experts, gradients.clean.row(t), experts);
    });
    return static_cast<Scalar>(scale * value);
  }

private:
  /// One q before it is evaluated.
  struct term {
    index_t threshold;  ///< position of the logit that is the threshold
    double difference;  ///< a - tau
    double std;
  };

  template <std::floating_point Scalar>
  void validate(const score_signals<Scalar>& seen) const {
    const bool learned = noise == load_form::learned_noise;
    if (learned && seen.noise_std.empty() && seen.clean.rows() > 0)
      throw_invalid("load_loss: load_form::learned_noise needs a router with learned noise");
    if (!learned && !(seen.sigma > 0))
      throw_invalid("load_loss: a fixed noise needs one deviation > 0, and the router's is ", seen.sigma,
                    "; learned noise needs load_form::learned_noise");
  }

  /// f(e, term) for every expert of a token.
  template <std::floating_point Scalar, typename F>
  void for_terms(const score_signals<Scalar>& seen, const Scalar* scores, index_t t, F&& f) const {
    const index_t experts = seen.clean.cols();
    const Scalar* noisy = seen.noisy().row(t);
    const bool learned = noise == load_form::learned_noise;
    const index_t last_in = ranked(noisy, experts, seen.top_k - 1);
    const index_t first_out = learned ? ranked(noisy, experts, seen.top_k) : last_in;
    for (index_t e = 0; e < experts; ++e) {
      const bool is_in = order_key(noisy[e]) > order_key(noisy[first_out]);
      const index_t threshold = is_in ? first_out : last_in;
      const Scalar compared = noise == load_form::scores_over_logits ? scores[e] : seen.clean(t, e);
      f(e, term{threshold, static_cast<double>(compared) - static_cast<double>(noisy[threshold]),
                static_cast<double>(learned ? seen.noise_std(t, e) : seen.sigma)});
    }
  }

  /// The gradient of a[t], added into that of the clean logits.
  template <std::floating_point Scalar>
  void add_compared(const Scalar* da, const Scalar* scores, Scalar* dclean, index_t experts) const {
    if (noise != load_form::scores_over_logits) {
      for (index_t e = 0; e < experts; ++e) dclean[e] += da[e];
      return;
    }
    Scalar inner = 0;
    for (index_t e = 0; e < experts; ++e) inner += scores[e] * da[e];
    for (index_t e = 0; e < experts; ++e) dclean[e] += scores[e] * (da[e] - inner);
  }

  /// Position of the number of this rank: 0 is the largest, the lower position first among equals. Ranks are few, so
  /// they are found one after the other without memory for a sorted row.
  template <std::floating_point Scalar>
  static index_t ranked(const Scalar* values, index_t count, index_t rank) {
    index_t found = kernel::arg_max(values, count);
    for (; rank > 0; --rank) {
      const auto before = order_key(values[found]);
      index_t next = -1;
      for (index_t i = 0; i < count; ++i) {
        const auto key = order_key(values[i]);
        const bool comes_later = key < before || (key == before && i > found);
        if (comes_later && (next < 0 || key > order_key(values[next]))) next = i;
      }
      found = next;
    }
    return found;
  }

  static double probability(const term& own) {
    if (own.std == 0) return own.difference < 0 ? 0 : 1;
    return std::erfc(-own.difference / own.std / std::numbers::sqrt2) / 2;
  }
  static double density(const term& own) {
    const double u = own.difference / own.std;
    return std::exp(-u * u / 2) * std::numbers::inv_sqrtpi / std::numbers::sqrt2;
  }
};

}  // namespace sluice::inline SLUICE_ISA
