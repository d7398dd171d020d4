/// A router whose chosen experts all have weight 1, while its own weights learn as if they counted.
///
///   the plan of another router, its weights G kept in the tape and replaced by 1;     dG = g, the gradient of the ones
///
/// y[t] is the plain sum of the chosen experts: with one of them a mixture of equal experts is that expert, bit for
/// bit, and its router has a gradient all the same. No derivative by design: G is not in y. gate_scaled_layer
/// (layer/gradient/gate_scaled.hpp) also scales what experts learn by G. Choices, drops, ties, NaN, T = 0, causality
/// and what losses see are the inner router's. Wu et al. 2022 (RMoE), arXiv:2204.09636.
#pragma once

#include <sluice/core/sparse_plan.hpp>
#include <sluice/router/router_decorator.hpp>

#include <algorithm>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Inner>
class unit_weights_router : public router_decorator<Inner> {
  using base = router_decorator<Inner>;
  static_assert(std::same_as<typename Inner::plan, sparse_plan<typename Inner::scalar>>,
                "sluice: unit_weights_router changes the weights of a sparse_plan");
  static_assert(!WeighsAfterExperts<Inner>,
                "sluice: unit_weights_router cannot change weights that its router fixes after the experts have run");

public:
  using typename base::plan;
  using typename base::scalar;
  static constexpr bool exact_gradient = false;

  struct tape : Inner::tape {
    buffer<scalar> inner_weights;  ///< G, in plan order
  };

  explicit unit_weights_router(Inner inner) : base(std::move(inner)) {}

  void route(tokens_in<scalar> x, const routing_context<scalar>& context, plan& p, tape& t) const {
    this->inner().route(x, context, p, t);
    t.inner_weights.reserve(p.most_rows());
    t.inner_weights.resize(p.size());
    std::copy(p.weights().begin(), p.weights().end(), t.inner_weights.begin());
    std::fill(p.weights().begin(), p.weights().end(), scalar(1));
  }

  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, const plan& p,
                const typename plan::gradient& dplan, tape& t, tokens_out<scalar> dx) {
    this->inner().backward(x, context, p, dplan, t, dx);
  }
};

}  // namespace sluice::inline SLUICE_ISA
