/// Load loss: experts should be chosen equally often, made differentiable by the noise that the router added.
///
///   q[t,e] = Phi((a[t,e] - tau[t,e]) / s[t,e])      how likely e is chosen if its own noise is drawn anew
///   load[e] = sum over t of q[t,e]                  value = cv2(load)
///
///   form                a                        tau                                       s
///   fixed_noise         clean logit              k-th largest noisy logit                  sigma           V-MoE
///   learned_noise       clean logit              k-th; for the chosen the (k+1)-th of them noise_std[t,e]  Shazeer
///   scores_over_logits  softmax of clean logits  k-th largest noisy logit                  sigma           Tutel
///   logits_over_scores  clean logit              k-th largest of softmax of noisy logits;  sigma           ShiftAddViT
///                                                where the noisy logit exceeds the (k+1)-th, that
///
/// The last two compare logits with probabilities, as released.
///
/// Gradients flow into a, into the noisy logit that set the threshold, and into s where it is learned:
///   da += c phi(u) / s,  dtau -= c phi(u) / s,  ds -= c u phi(u) / s,   u = (a - tau) / s,  c = d value / d load[e]
/// With k = E the learned form counts the assignments of positive weight and has no gradient. Tutel's own loss is half
/// of this plus half of importance_loss, both with variance::unbiased.
///
/// Without noise (inference, deviation 0) there is nothing to differentiate: the value is 0 and nothing is read, or
/// with counts_without_noise it is cv2 of the assignments of positive weight, as in FastMoE. With costs, load[e] where
/// it is differentiable is multiplied by that of e. Equal logits: the lower index ranks first. A learned scale that
/// rounded to 0 makes q a step without gradient.
/// Groups, padding, NaN and coefficient 0: loss/common.hpp.
/// Riquelme et al. 2021, arXiv:2106.05974, appendix A; Shazeer et al. 2017, arXiv:1701.06538, eq. 8-11;
/// You et al. 2023 (ShiftAddViT), arXiv:2306.06446 (costs).
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/kernel/order.hpp>
#include <sluice/loss/common.hpp>

#include <numbers>
#include <vector>

namespace sluice::inline SLUICE_ISA {

enum class load_form { fixed_noise, learned_noise, scores_over_logits, logits_over_scores };

struct load_loss {
  double coefficient = 1;
  load_form noise = load_form::fixed_noise;
  variance form = variance::population;
  bool counts_without_noise = false;
  std::vector<double> cost{};  ///< one an expert; empty means 1

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
    if (!seen.has_noise && !counts_without_noise) return 0;
    if (seen.has_noise) validate(seen);
    const token_range range = context.group(group, seen.clean.rows());
    const index_t experts = seen.clean.cols();
    gradients.sum_scratch.assign(2 * experts, 0);
    double* load = gradients.sum_scratch.data();
    if (!seen.has_noise || (reads_next() && seen.top_k == experts)) {
      for (index_t t = range.begin; t < range.end; ++t)
        for (const index_t i : plan.of_token(t)) load[plan.expert(i)] += plan.weight(i) > 0;
      const double value = seen.has_noise
                               ? detail::cv_squared_of_costs(cost, load, experts, form, load + experts, scale)
                               : detail::cv_squared(load, experts, form, load + experts);
      return static_cast<Scalar>(scale * value);
    }
    matrix_buffer<Scalar>& rows = gradients.row_scratch;  // q, and behind it the softmax that is compared
    rows.resize(range.size(), 2 * experts);
    detail::for_tokens(context, range, experts, [&](index_t t) {
      Scalar* q = rows.row(t - range.begin);
      if (noise == load_form::scores_over_logits) kernel::softmax(seen.clean.row(t), q + experts, experts);
      if (noise == load_form::logits_over_scores) kernel::softmax(seen.noisy().row(t), q + experts, experts);
      for_terms(seen, q + experts, t,
                [&](index_t e, const term& own) { q[e] = static_cast<Scalar>(probability(own)); });
    });
    detail::add_rows(context, range, rows, experts, load);
    const double value = detail::cv_squared_of_costs(cost, load, experts, form, load + experts, scale);
    detail::for_tokens(context, range, experts, [&](index_t t) {
      Scalar* row = rows.row(t - range.begin);
      for_terms(seen, row + experts, t, [&](index_t e, const term& own) {
        row[e] = 0;
        if (own.std == 0) return;
        const double slope = load[experts + e] * density(own) / own.std;
        row[e] = static_cast<Scalar>(slope);
        subtract_threshold(row + experts, own.threshold, slope, gradients.noisy_or_clean().row(t), experts);
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
    const Scalar* ordered = noise == load_form::logits_over_scores ? scores : noisy;
    const index_t last_in = ranked(ordered, experts, seen.top_k - 1);
    const index_t first_out = reads_next() ? ranked(ordered, experts, seen.top_k) : last_in;
    for (index_t e = 0; e < experts; ++e) {
      const bool is_in = order_key(noisy[e]) > order_key(ordered[first_out]);
      const index_t threshold = is_in ? first_out : last_in;
      const Scalar compared = noise == load_form::scores_over_logits ? scores[e] : seen.clean(t, e);
      f(e, term{threshold, static_cast<double>(compared) - static_cast<double>(ordered[threshold]),
                static_cast<double>(learned ? seen.noise_std(t, e) : seen.sigma)});
    }
  }

  /// Whether the threshold of what is chosen is the next number, the (k+1)-th.
  bool reads_next() const noexcept {
    return noise == load_form::learned_noise || noise == load_form::logits_over_scores;
  }

  /// Takes the gradient of the threshold from that of the noisy logits.
  template <std::floating_point Scalar>
  void subtract_threshold(const Scalar* scores, index_t threshold, double slope, Scalar* dnoisy,
                          index_t experts) const {
    if (noise != load_form::logits_over_scores) {
      dnoisy[threshold] -= static_cast<Scalar>(slope);
      return;
    }
    const double pull = slope * static_cast<double>(scores[threshold]);
    dnoisy[threshold] -= static_cast<Scalar>(pull);
    for (index_t e = 0; e < experts; ++e) dnoisy[e] += static_cast<Scalar>(pull * static_cast<double>(scores[e]));
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
