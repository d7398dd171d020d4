/// A mixture whose value leaves the gate out and whose gradients do not: y = sum over S of sg((1 - G) E(x)) + G E(x).
///
///   y[t] = sum over the chosen experts of E_e(x[t]);    what an expert learns from: G dy;    dG = <dy, E_e(x)>
///
///   gate_scaled_layer layer{moe_layer{unit_weights_router{switch_router<float>{64, 8}}, bank}};
///
/// A dense network that became eight equal experts goes on as it was, bit for bit, while its new router learns at full
/// strength. With k experts y is k times too large: what published work does then could not be read, so take k = 1, or
/// experts that are scaled. The router is a unit_weights_router, whose plan has ones forward and G backward. No
/// derivative by design. Calls, memory and bits are the inner layer's (layer/decorator.hpp). Wu et al. 2022, "Residual
/// Mixture of Experts", arXiv:2204.09636.
#pragma once

#include <sluice/layer/decorator.hpp>
#include <sluice/router/unit_weights.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Layer>
class gate_scaled_layer : public layer_decorator<gate_scaled_layer<Layer>, Layer> {
  using base = layer_decorator<gate_scaled_layer, Layer>;
  friend base;
  static_assert(
      requires(typename Layer::tape & t) { t.router.inner_weights; },
      "sluice: gate_scaled_layer needs a layer whose router is a unit_weights_router");

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;

  explicit gate_scaled_layer(Layer layer) : base(std::move(layer)) {}

private:
  template <typename Memory, typename Inner>
  void around(tokens_in<scalar> x, tokens_out<scalar> y, Memory&, const context_type&, Inner inner) const {
    inner(x, y);
  }

  template <typename Inner>
  void around_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t, Inner inner) {
    exchange(t);
    inner(dy, dx);
    exchange(t);  // a second backward call begins as the first
  }

  /// The ones of the plan for G, or back.
  static void exchange(tape& t) {
    const auto weights = t.layer.plan.weights();
    for (std::size_t i = 0; i < weights.size(); ++i)
      std::swap(weights[i], t.layer.router.inner_weights[static_cast<index_t>(i)]);
  }

  template <typename Storage, typename Inner>
  auto rebuilt(Inner inner) const {
    return gate_scaled_layer<Inner>(std::move(inner));
  }
};

}  // namespace sluice::inline SLUICE_ISA
