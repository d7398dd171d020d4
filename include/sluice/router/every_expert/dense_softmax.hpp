/// Dense softmax router, the classic mixture of experts: every token goes to every expert, weighed by a softmax.
///
///   X [T,D]   L = gate(X) [T,E]   w[t] = softmax(L[t])   y[t] = sum over all e of w[t,e] * f_e(x[t])
///   dl[t,e] = w[t,e] (g[t,e] - sum over i of w[t,i] g[t,i]),  g the gradients of the weights
///
/// The gradient is exact. With one router a task over one bank of experts (expert/bank_ref.hpp) it is the gate of MMoE.
/// A weight may underflow to 0. A token with an infinite logit shares its mass among those. All else:
/// router/every_expert/dense_mixture.hpp.
/// Jacobs, Jordan, Nowlan, Hinton 1991, "Adaptive Mixtures of Local Experts"; Ma et al. 2018, "Modeling Task
/// Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts".
#pragma once

#include <sluice/gate/linear.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/router/every_expert/dense_mixture.hpp>

#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

struct softmax_weights {
  template <FloatOrDouble Scalar>
  void weigh(const mixture_row<Scalar>& row, Scalar* w) const {
    kernel::softmax(row.logits, w, row.experts);
  }
  template <FloatOrDouble Scalar>
  void backward(const mixture_row<Scalar>& row, const Scalar* w, const Scalar* dw, Scalar* dlogits) const {
    Scalar inner = 0;
    for (index_t e = 0; e < row.experts; ++e) inner += w[e] * dw[e];
    for (index_t e = 0; e < row.experts; ++e) dlogits[e] += w[e] * (dw[e] - inner);
  }
};

/// sluice::dense_softmax_router<float> router{64, 8};
template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>>
class dense_softmax_router : public dense_mixture_router<GateType, softmax_weights> {
  using base = dense_mixture_router<GateType, softmax_weights>;

public:
  /// A linear gate without bias.
  dense_softmax_router(index_t inputs, index_t experts)
    requires std::constructible_from<GateType, index_t, index_t>
      : base(GateType(inputs, experts)) {}
  explicit dense_softmax_router(GateType gate) : base(std::move(gate)) {}
};

static_assert(DifferentiableRouter<dense_softmax_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
