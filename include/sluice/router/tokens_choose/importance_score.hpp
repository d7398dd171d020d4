/// Importance-score routing, a reading of Sparse-MLP: experts fill their places with the items of the highest score
/// first.
///
///   p = softmax(L[t])   S = the k largest   w = p[e]   importance of item t = sum of p over S
///   within a rank, items are served by falling importance, of equals the lower one; what finds no place is dropped
///
/// That is batch priority routing (capacity/batch_priority.hpp: not causal; ties, NaN, T = 0) over top_k_router.
/// Sparse-MLP has two such layers a block: one mixes channels, and its items are the N patches of width D; one mixes
/// patches, and its items are the D channels of width N: the same router with inputs() = N, in a transposed_layer.
/// With one expert the latter is a plain token-mixing network. There are more channels than patches, and few matter:
/// hence the score.
///
/// Only an abstract of the paper was read: its formula of the score, its k and coefficients are not known here. This is
/// the reading above, and the name sparse_mlp_router stays free for the exact form.
/// Lou et al. 2021, "Cross-token Modeling with Conditional Computation", arXiv:2109.02008.
#pragma once

#include <sluice/capacity/batch_priority.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

/// sluice::importance_score_router<float> router{196, 8};   items of width 196
template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>>
class importance_score_router
    : public top_k_router<Scalar, dynamic, dynamic, GateType, no_noise<Scalar>, batch_priority_capacity> {
  using base = top_k_router<Scalar, dynamic, dynamic, GateType, no_noise<Scalar>, batch_priority_capacity>;

public:
  struct options {
    index_t top_k = 1;
    capacity_limit capacity = capacity_limit::gshard(1.0, 1);
  };

  importance_score_router(index_t inputs, index_t experts, options o = {})
    requires std::constructible_from<GateType, index_t, index_t>
      : importance_score_router(GateType(inputs, experts), std::move(o)) {}
  explicit importance_score_router(GateType gate, options o = {})
      : base(std::move(gate), {.top_k = o.top_k, .weights = weighting::pre}, {},
             batch_priority_capacity(std::move(o.capacity), batch_priority::sum_of_weights)) {}
};

static_assert(DifferentiableRouter<importance_score_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
