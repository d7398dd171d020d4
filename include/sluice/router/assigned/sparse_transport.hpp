/// Routers by sparsity-constrained transport: a coupling with as many entries as there are choices says who chooses
/// what.
///
///   sparse_expert_choice_router   expert e takes the C largest entries of its column, of which at most C are not 0
///   sparse_token_choice_router    token t goes to the k largest entries of its row, never to one that is 0
///
///   sparse_expert_choice_router<float> router{64, 8};                 C = ceil(cf n / E), cf = 1 unless said otherwise
///   sparse_token_choice_router<float> other{64, 8, {.top_k = 2}};     with capacity: position_capacity, as published
///
/// The coupling is that of router/assigned/sparse_coupling.hpp, of the softmax of the logits, in training and at
/// inference alike and without noise; it is a constant in backward. Weights: softmax of the logits over all E, not
/// renormalised. Ties, NaN, T = 0: router/assigned/coupling.hpp. Not causal. Liu et al. 2024, "Routers in Vision
/// Mixture of Experts", arXiv:2401.15969.
#pragma once

#include <sluice/gate/linear.hpp>
#include <sluice/router/assigned/sparse_coupling.hpp>
#include <sluice/router/experts_choose/expert_choice.hpp>
#include <sluice/router/token_choice.hpp>
#include <sluice/router/tokens_choose/sigmoid_top_k.hpp>

#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>>
class sparse_expert_choice_router
    : public expert_choice_router<Scalar, GateType, no_noise<Scalar>, sparse_column_coupling<Scalar>> {
  using base = expert_choice_router<Scalar, GateType, no_noise<Scalar>, sparse_column_coupling<Scalar>>;

public:
  struct options {
    capacity_limit capacity = capacity_limit::vmoe(1.0, capacity_rounding::up, 0);
    sparse_coupling_options coupling = {};
  };

  /// A linear gate without bias.
  sparse_expert_choice_router(index_t inputs, index_t experts, options o = {})
    requires std::constructible_from<GateType, index_t, index_t>
      : sparse_expert_choice_router(GateType(inputs, experts), std::move(o)) {}
  explicit sparse_expert_choice_router(GateType gate, options o = {})
      : base(std::move(gate), {.capacity = o.capacity}, {}, {},
             sparse_column_coupling<Scalar>(o.capacity, o.coupling)) {}
};

template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>, typename Capacity = dropless>
class sparse_token_choice_router
    : public token_choice_router<GateType, coupling_rule<Scalar, sparse_row_coupling<Scalar>, sigmoid_rule<Scalar>>,
                                 no_noise<Scalar>, Capacity> {
  using rule_type = coupling_rule<Scalar, sparse_row_coupling<Scalar>, sigmoid_rule<Scalar>>;
  using base = token_choice_router<GateType, rule_type, no_noise<Scalar>, Capacity>;

public:
  struct options {
    index_t top_k = 1;
    sparse_coupling_options coupling = {};
  };

  /// A linear gate without bias.
  sparse_token_choice_router(index_t inputs, index_t experts, options o = {})
    requires std::constructible_from<GateType, index_t, index_t>
      : sparse_token_choice_router(GateType(inputs, experts), o) {}
  explicit sparse_token_choice_router(GateType gate, options o = {}, Capacity capacity = {})
      : sparse_token_choice_router(gate.experts(), std::move(gate), o, std::move(capacity)) {}

private:
  sparse_token_choice_router(index_t experts, GateType&& gate, const options& o, Capacity&& capacity)
      : base(std::move(gate),
             rule_type(sparse_row_coupling<Scalar>(o.coupling),
                       sigmoid_rule<Scalar>(experts, {.top_k = o.top_k,
                                                      .renormalize = false,
                                                      .selection_bias = false,
                                                      .scores = expert_scores::softmax}),
                       {.top_k = o.top_k}),
             {}, std::move(capacity)) {}
};

static_assert(DifferentiableRouter<sparse_expert_choice_router<float>>);
static_assert(DifferentiableRouter<sparse_token_choice_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
