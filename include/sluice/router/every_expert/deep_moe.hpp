/// The router of a deep mixture of experts: a softmax over all experts whose gate has a hidden layer, balanced while it
/// is trained.
///
///   g(u) = softmax(U2 relu(U1 u))      z = sum over e of g_e(u) f_e(u),   f_e(u) = relu(W_e u + b_e)
///   in training with margin_gate's constraint
///
/// Layers of it one after the other make E experts a layer E² paths: the gate of the second reads what the first put
/// together.
///
///   const deep_moe_router<float> router(64, 8, {.hidden = 20, .margin = 1});
///   const expert_bank<activated_expert<float>> experts{8, 64, 64};
///   sequence model{moe_layer{router, experts}, moe_layer{router, experts}, linear_layer<float>{64, classes}};
///
/// The first phase of training goes with the constraint, the second without: router.gate().set_margin(infinity).
/// layer.after_step(tape) after every step moves what the constraint knows (gate/margin.hpp, where padding, NaN and
/// order are told). The hidden layer is most of the time: unless H is small, several times that of a linear gate
/// (gate/two_layer.hpp has the count). Gradients are exact, those of closed experts 0. Everything else as
/// dense_softmax_router. Eigen, Ranzato, Sutskever 2014, arXiv:1312.4314.
#pragma once

#include <sluice/gate/margin.hpp>
#include <sluice/gate/two_layer.hpp>
#include <sluice/router/every_expert/dense_softmax.hpp>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class deep_moe_router : public dense_softmax_router<Scalar, margin_gate<two_layer_gate<Scalar>>> {
  using gate_type = margin_gate<two_layer_gate<Scalar>>;
  using base = dense_softmax_router<Scalar, gate_type>;

public:
  struct options {
    index_t hidden = 0;  ///< of the gate; 0 means 8E
    Scalar margin = 1;
  };

  deep_moe_router(index_t inputs, index_t experts, options o = {})
      : base(gate_type(
            two_layer_gate<Scalar>(inputs, experts, {.hidden = o.hidden, .activation = gate_activation::relu}),
            o.margin)) {}
};

static_assert(DifferentiableRouter<deep_moe_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
