/// Self-contrast: the next token by what a model says with its usual experts, against what it says with weaker ones.
///
///   strong, weak [T,V] logits of two passes, over their temperatures z_s and z_w
///   scores[t,v] = (1 + beta) z_s - beta z_w   where z_s[t,v] >= log alpha + max of z_s[t];   -infinity elsewhere
///
/// The weak pass has experts of lower rank (router/tokens_choose/chosen_ranks.hpp: rank 1 alone in the paper). Words
/// that the strong pass thinks unlikely stay out, whatever the weak one says; the best one is always in. With beta = 0,
/// or two equal passes, the largest score is the strong pass's largest logit. A word whose strong logit is NaN is out;
/// a weak one that is NaN makes the score NaN. T = 0 is fine.
/// Shi et al. 2024, arXiv:2405.14507.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/types.hpp>
#include <sluice/kernel/order.hpp>

#include <cmath>
#include <limits>

namespace sluice::inline SLUICE_ISA {

struct self_contrast {
  double alpha = 0.1;  ///< share of the best word's probability that a word needs
  double beta = 0.5;
  double strong_temperature = 1;
  double weak_temperature = 1;

  /// Throws std::invalid_argument if shapes differ, or unless 0 < alpha <= 1, beta >= 0 and temperatures are above 0.
  template <FloatOrDouble Scalar>
  matrix<Scalar> operator()(const matrix<Scalar>& strong, const matrix<Scalar>& weak) const {
    if (!is_above(alpha, 0) || alpha > 1 || !is_at_least(beta, 0))
      throw_invalid("self_contrast needs 0 < alpha <= 1 and beta >= 0, not ", alpha, " and ", beta);
    if (!is_above(strong_temperature, 0) || !is_above(weak_temperature, 0))
      throw_invalid("self_contrast needs temperatures above 0, not ", strong_temperature, " and ", weak_temperature);
    if (strong.rows() != weak.rows() || strong.cols() != weak.cols())
      throw_invalid("self_contrast needs equal shapes, not [", strong.rows(), ", ", strong.cols(), "] and [",
                    weak.rows(), ", ", weak.cols(), "]");
    matrix<Scalar> scores(strong.rows(), strong.cols());
    scores.setConstant(-std::numeric_limits<Scalar>::infinity());
    const auto over = [](Scalar logit, double temperature) {
      return static_cast<Scalar>(static_cast<double>(logit) / temperature);
    };
    for (index_t t = 0; t < scores.rows() && scores.cols() > 0; ++t) {
      const Scalar best = strong(t, kernel::arg_max(&strong(t, 0), strong.cols()));
      const Scalar least = over(best, strong_temperature) + static_cast<Scalar>(std::log(alpha));
      for (index_t v = 0; v < scores.cols(); ++v) {
        const Scalar own = over(strong(t, v), strong_temperature);
        if (is_nan(own) || order_key(own) < order_key(least)) continue;
        scores(t, v) =
            static_cast<Scalar>(1 + beta) * own - static_cast<Scalar>(beta) * over(weak(t, v), weak_temperature);
      }
    }
    return scores;
  }
};

}  // namespace sluice::inline SLUICE_ISA
