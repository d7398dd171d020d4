/// Dense sigmoid router: every token goes to every expert, and experts do not compete.
///
///   X [T,D]   L = gate(X) [T,E]   w[t,e] = sigmoid(L[t,e])   y[t] = sum over all e of w[t,e] * f_e(x[t])
///   dl[t,e] = g[t,e] w[t,e] (1 - w[t,e]),  g the gradients of the weights
///
/// Weights do not sum to 1. The gradient is exact. An infinite logit is a value: weight 0 or 1. With grkan_gate
/// (gate/grkan.hpp) it is the mixture of KAMoE. All else: router/every_expert/dense_mixture.hpp.
/// Inzirillo and Genet 2024, "A Gated Residual Kolmogorov-Arnold Networks for Mixtures of Experts", arXiv:2409.15161.
#pragma once

#include <sluice/gate/linear.hpp>
#include <sluice/kernel/logistic.hpp>
#include <sluice/router/every_expert/dense_mixture.hpp>

#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

struct sigmoid_weights {
  template <FloatOrDouble Scalar>
  void weigh(const mixture_row<Scalar>& row, Scalar* w) const {
    kernel::logistic(row.logits, w, row.experts);
  }
  template <FloatOrDouble Scalar>
  void backward(const mixture_row<Scalar>& row, const Scalar* w, const Scalar* dw, Scalar* dlogits) const {
    // 1 - w as sigmoid(-l): exact where w rounds to 1
    for (index_t e = 0; e < row.experts; ++e) dlogits[e] += dw[e] * w[e] * kernel::logistic(-row.logits[e]);
  }
};

/// sluice::dense_sigmoid_router<float> router{64, 8};
template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>>
class dense_sigmoid_router : public dense_mixture_router<GateType, sigmoid_weights> {
  using base = dense_mixture_router<GateType, sigmoid_weights>;

public:
  /// A linear gate without bias.
  dense_sigmoid_router(index_t inputs, index_t experts)
    requires std::constructible_from<GateType, index_t, index_t>
      : base(GateType(inputs, experts)) {}
  explicit dense_sigmoid_router(GateType gate) : base(std::move(gate)) {}
};

static_assert(DifferentiableRouter<dense_sigmoid_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
