/// L1 penalty on ReLU routing weights (ReMoE): makes them sparse, and keeps the load even.
///
///   r[t,e] = max(L[t,e], 0)    n_e = tokens with r[t,e] > 0 (a constant in backward)    a_e = sum over t of r[t,e]
///
///   balanced  value = E / (k T^2) * sum over e of a_e n_e     dL[t,e] = E n_e / (k T^2) where L[t,e] > 0
///   plain     value = 1 / T * sum over e of a_e               dL[t,e] = 1 / T where L[t,e] > 0
///
/// The penalty is coefficient / layers × value. The published code adds it for every layer (layers = 1), the paper's
/// equation takes the mean over layers; as the coefficient is steered, only its scale changes. All tokens of a call
/// count together, as in the code: groups play no part. T counts tokens without padding. A NaN logit of a token that
/// counts makes the value NaN. All negative, or T = 0: value 0, no gradient. Coefficient 0: nothing is evaluated.
/// Wang, Zhu, Chen 2024, "ReMoE", arXiv:2412.14711. The coefficient is steered by loss/adaptive_l1.hpp.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/loss/adaptive_l1.hpp>
#include <sluice/loss/common.hpp>

#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

/// relu_l1 loss{2, adaptive_l1<float>{experts, 2}};
template <typename Coefficient>
class relu_l1 {
public:
  struct options {
    bool balanced = true;
    index_t layers = 1;
  };

  /// Throws std::invalid_argument unless k >= 1 and layers >= 1.
  explicit relu_l1(index_t top_k, Coefficient coefficient, options o = {})
      : options_(o), top_k_(top_k), coefficient_(std::move(coefficient)) {
    if (top_k < 1 || o.layers < 1)
      throw_invalid("relu_l1 needs k >= 1 and layers >= 1, not k = ", top_k, ", layers = ", o.layers);
  }

  template <std::floating_point Scalar, typename Plan>
  Scalar operator()(const score_signals<Scalar>& seen, const Plan&, const routing_context<Scalar>& context,
                    score_gradients<Scalar>& gradients) const {
    const matrix_buffer<Scalar>& logits = seen.clean;
    const index_t experts = logits.cols();
    const token_range all{0, logits.rows()};
    const auto tokens = static_cast<double>(detail::count_tokens(context, all));
    const double factor = coefficient_.value() / static_cast<double>(options_.layers);
    detail::check_coefficient(factor);
    if (tokens == 0 || factor == 0) return 0;
    gradients.sum_scratch.assign(2 * experts, 0);
    double* count = gradients.sum_scratch.data();
    double* sum = count + experts;
    for (index_t t = 0; t < logits.rows(); ++t) {
      if (context.is_padding(t)) continue;
      for (index_t e = 0; e < experts; ++e) {
        const Scalar logit = logits(t, e);
        if (!is_nan(logit) && !(logit > 0)) continue;
        count[e] += 1;
        sum[e] += static_cast<double>(logit);
      }
    }
    double value = 0;
    const double share = static_cast<double>(experts) / (static_cast<double>(top_k_) * tokens);
    for (index_t e = 0; e < experts; ++e) {
      count[e] = factor / tokens * (options_.balanced ? share * count[e] : 1);  // from here on the slope of the column
      value += count[e] * sum[e];
    }
    detail::for_tokens(context, all, experts, [&](index_t t) {
      for (index_t e = 0; e < experts; ++e)
        if (logits(t, e) > 0) gradients.clean(t, e) += static_cast<Scalar>(count[e]);
    });
    return static_cast<Scalar>(value);
  }

  void after_step(const routing_statistics& statistics) {
    if constexpr (requires { coefficient_.after_layer(statistics); }) coefficient_.after_layer(statistics);
  }

  Coefficient& coefficient() noexcept { return coefficient_; }
  const Coefficient& coefficient() const noexcept { return coefficient_; }

  template <typename Self, typename Visitor>
    requires HasParameters<Coefficient>
  static void visit_parameters(Self& self, Visitor&& visit) { visit("coefficient", self.coefficient_); }

private:
  options options_;
  index_t top_k_;
  Coefficient coefficient_;
};

}  // namespace sluice::inline SLUICE_ISA
