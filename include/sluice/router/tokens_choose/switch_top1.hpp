/// Switch router: each token goes to its one best expert, if there is room.
///
///   x~ = x u, u ~ U(1 - jitter, 1 + jitter) in training;  L [T,E] = gate(x~);  p = softmax(L[t])
///   e = arg max p, w = p[e]
///   C = ceil(cf T / E), cf 1.25 in training and 2 at inference: the first C tokens that ask for an expert are served
///
/// The jitter is on the router's copy of x only, drawn at input_jitter_site, position t*D + d; experts see x.
/// A token that is not served has output zero: the residual connection around the layer carries it. Gradient: dl[j] =
/// g w (1[j = e] - p[j]), zero for a token that was not served. Ties, NaN and T = 0 as in top_k_router. Other "Switch"
/// gates differ: see gate/jitter.hpp for jitter that is added to or multiplied with the logits, and take
/// random_capacity for DeepSpeed's random token selection. Fedus, Zoph, Shazeer 2022, arXiv:2101.03961, section
/// 2.1-2.4.
#pragma once

#include <sluice/capacity/position.hpp>
#include <sluice/gate/jitter.hpp>
#include <sluice/gate/linear.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

namespace sluice::inline SLUICE_ISA {

/// sluice::switch_router<float> router{64, 8, {.jitter = 0.01, .factor = {1.25, 2.0}}};
/// Another gate, jittered or not, or another capacity policy: switch_router<float, dynamic, Gate, Capacity>(gate,
/// capacity).
template <FloatOrDouble Scalar, index_t Experts = dynamic,
          typename GateType = jittered_gate<linear_gate<Scalar>>, typename Capacity = position_capacity>
class switch_router : public token_choice_router<GateType, softmax_rule<Scalar>, no_noise<Scalar>, Capacity, Experts> {
  using base = token_choice_router<GateType, softmax_rule<Scalar>, no_noise<Scalar>, Capacity, Experts>;

public:
  struct options {
    double jitter = 1e-2;
    capacity_factor factor{1.25, 2.0};
  };

  explicit switch_router(index_t inputs, index_t experts = Experts, options o = {})
    requires(std::same_as<Capacity, position_capacity> &&
             std::constructible_from<GateType, index_t, index_t, double>)
      : switch_router(GateType(inputs, experts, o.jitter),
                      position_capacity(capacity_limit::switch_transformer(o.factor))) {}

  switch_router(GateType gate, Capacity capacity)
      : base(std::move(gate), softmax_rule<Scalar>({.top_k = 1, .weights = weighting::pre}), {}, std::move(capacity)) {}
};

static_assert(DifferentiableRouter<switch_router<float>>);
static_assert(DifferentiableRouter<switch_router<double, 8, linear_gate<double>>>);

}  // namespace sluice::inline SLUICE_ISA
