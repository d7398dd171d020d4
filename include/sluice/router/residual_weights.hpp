/// Weights that start at 1 and learn how much of a router's opinion to add: 1 + alpha w.
///
///   the plan of another router, its weights w replaced by w' = 1 + alpha w      alpha one number, or one an expert [E]
///   dw = alpha g,  dalpha = sum over assignments of w g                          g the gradient of w'
///
/// With alpha = 0, where it starts, the experts are used as they are, and only alpha has a gradient: it moves first,
/// the router after it. MoNE scales its nested branches so; CMoE the experts that it carves out of a dense network,
/// with one alpha an expert, chosen by gate/neuron_magnitude.hpp. Everything else (choices, drops, ties, NaN, T = 0,
/// causality, what losses see) is the inner router's. Weights of dropped assignments stay the inner router's.
/// Jain et al. 2024, arXiv:2407.19985; Pei et al. 2025, arXiv:2502.04416.
#pragma once

#include <sluice/core/parameter.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/router/router_decorator.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Inner>
class residual_weights_router : public router_decorator<Inner> {
  using base = router_decorator<Inner>;
  static_assert(std::same_as<typename Inner::plan, sparse_plan<typename Inner::scalar>>,
                "sluice: residual_weights_router changes the weights of a sparse_plan");
  static_assert(
      !WeighsAfterExperts<Inner>,
      "sluice: residual_weights_router cannot change weights that its router fixes after the experts have run");

public:
  using typename base::plan;
  using typename base::scalar;

  struct tape : Inner::tape {
    buffer<scalar> inner_weights;  ///< w, in plan order
    typename plan::gradient dplan;
  };
  struct options {
    double initial = 0;       ///< alpha to begin with
    bool per_expert = false;  ///< an alpha for every expert
  };

  /// Throws std::invalid_argument unless the initial alpha is finite.
  explicit residual_weights_router(Inner inner, options o = {}) : base(std::move(inner)) {
    if (!is_finite(o.initial)) throw_invalid("residual_weights_router needs a finite initial alpha, not ", o.initial);
    alpha_ = {{o.per_expert ? this->experts() : 1}, parameter_role::vector, initial_values::constant(o.initial)};
  }

  void route(tokens_in<scalar> x, const routing_context<scalar>& context, plan& p, tape& t) const {
    this->inner().route(x, context, p, t);
    t.inner_weights.reserve(p.most_rows());
    t.inner_weights.resize(p.size());
    for (index_t i = 0; i < p.size(); ++i) {
      scalar& weight = p.weights()[static_cast<std::size_t>(i)];
      t.inner_weights[i] = weight;
      weight = 1 + alpha(p.expert(i)) * weight;
    }
  }

  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, const plan& p,
                const typename plan::gradient& dplan, tape& t, tokens_out<scalar> dx) {
    t.dplan.weight.reserve(p.most_rows());
    t.dplan.weight.resize(p.size());
    t.dplan.input_scale = dplan.input_scale;
    for (index_t i = 0; i < p.size(); ++i) {
      alpha_.gradient()[place(p.expert(i))] += t.inner_weights[i] * dplan.weight[i];
      t.dplan.weight[i] = alpha(p.expert(i)) * dplan.weight[i];
    }
    this->inner().backward(x, context, p, t.dplan, t, dx);
  }

  parameter<scalar>& alpha() noexcept { return alpha_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    base::visit_parameters(self, visit);
    visit("alpha", self.alpha_);
  }

private:
  std::size_t place(index_t expert) const noexcept { return static_cast<std::size_t>(alpha_.size() == 1 ? 0 : expert); }
  scalar alpha(index_t expert) const noexcept { return alpha_.data()[place(expert)]; }

  parameter<scalar> alpha_;
};

}  // namespace sluice::inline SLUICE_ISA
