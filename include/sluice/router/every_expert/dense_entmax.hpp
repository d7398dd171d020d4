/// Dense mixture by 1.5-entmax: every expert may have a part, and those whose scores lie far below have none.
///
///   X [T,D]   L = gate(X) [T,E]   w[t] = entmax(L[t])   y[t] = sum over all e of w[t,e] * f_e(x[t])
///   dl = q (g - <q, g> / sum q),  q = sqrt(w[t]),  g the gradients of the weights
///
/// Between a softmax, in which nobody has nothing, and a choice of k: how many experts a token has is learned, and the
/// weights' gradient is continuous where one falls to zero. The arithmetic, infinite scores: kernel/entmax.hpp. All
/// else: router/every_expert/dense_mixture.hpp. Peters, Niculae, Martins 2019, arXiv:1905.05702; as a gate of experts
/// Oldfield et al. 2024 (muMoE), arXiv:2402.12550.
#pragma once

#include <sluice/gate/linear.hpp>
#include <sluice/kernel/entmax.hpp>
#include <sluice/router/every_expert/dense_mixture.hpp>

#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

struct entmax_weights {
  template <FloatOrDouble Scalar>
  void weigh(const mixture_row<Scalar>& row, Scalar* w) const {
    kernel::entmax15(row.logits, w, row.experts);
  }
  template <FloatOrDouble Scalar>
  void backward(const mixture_row<Scalar>& row, const Scalar* w, const Scalar* dw, Scalar* dlogits) const {
    kernel::add_entmax15_gradient(w, dw, row.experts, dlogits);
  }
};

/// sluice::dense_entmax_router<float> router{64, 8};
template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>>
class dense_entmax_router : public dense_mixture_router<GateType, entmax_weights> {
  using base = dense_mixture_router<GateType, entmax_weights>;

public:
  /// A linear gate without bias.
  dense_entmax_router(index_t inputs, index_t experts) requires std::constructible_from<GateType, index_t, index_t>
      : base(GateType(inputs, experts)) {}
  explicit dense_entmax_router(GateType gate) : base(std::move(gate)) {}
};

static_assert(DifferentiableRouter<dense_entmax_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
