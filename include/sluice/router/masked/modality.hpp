/// Routers that keep modalities apart: what context.modality_ids says of a token decides which experts it may meet.
///
///   vlmo_router    a table says which expert a modality has; weight 1, nothing is learned. Layers on top, where vision
///                  and language share one expert, have a table that gives it to both
///                    vlmo_router<float> router(D, E, {0, 1});
///   moma_router    within the experts of a modality these choose tokens of that modality, by sigmoid scores, which do
///                  not compete: dl = g s (1 - s)
///                    moma_router<float> router(linear_gate<float>(D, 8), {4, 4});
///                  C comes from the group's tokens of the modality and the experts that it has. Choosing looks at all
///                  tokens; what decodes token by token predicts it: router/experts_choose/predicted_choice.hpp
///   unimoe_router  top_k_router {.top_k = 2} over experts that were trained one modality each; what is special is its
///                  three phases of training, none of the router. Only an abstract of Uni-MoE was read: a reading
///
/// A token's scores for experts of other modalities have no gradient, and with one modality the grouped router is the
/// ungrouped one, bit for bit. A call without modality ids throws. Ties, NaN, padding, T = 0: as in the routers they
/// are. Bao et al. 2021 (VLMo), arXiv:2111.02358; Lin et al. 2024, "MoMa: Efficient Early-Fusion Pre-training with
/// Mixture of Modality-Aware Experts", arXiv:2407.21770; Li et al. 2024 (Uni-MoE), arXiv:2405.11273.
#pragma once

#include <sluice/router/experts_choose/expert_choice.hpp>
#include <sluice/router/fixed/hash.hpp>
#include <sluice/router/masked/modality_experts.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class vlmo_router : public hash_router<Scalar> {
public:
  /// expert_of[m] is the expert of modality m.
  vlmo_router(index_t inputs, index_t experts, const std::vector<index_t>& expert_of)
      : hash_router<Scalar>(no_gate<Scalar>(inputs, experts), {table_of(expert_of), {}, id_source::modality}) {}

private:
  static matrix<index_t> table_of(const std::vector<index_t>& expert_of) {
    matrix<index_t> table(static_cast<index_t>(expert_of.size()), 1);
    for (index_t m = 0; m < table.rows(); ++m) table(m, 0) = expert_of[static_cast<std::size_t>(m)];
    return table;
  }
};

template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>, typename Noise = logistic_noise<Scalar>>
class moma_router : public expert_choice_router<Scalar, GateType, Noise> {
  using base = expert_choice_router<Scalar, GateType, Noise>;

public:
  struct options {
    capacity_limit capacity = capacity_limit::vmoe(1.0, capacity_rounding::up, 0);
  };

  /// experts[m] of the gate's experts are for modality m.
  moma_router(GateType gate, std::vector<index_t> experts, options o = {}, Noise noise = Noise{})
      : base(std::move(gate),
             {.capacity = std::move(o.capacity), .scores = base::score::sigmoid, .modalities = std::move(experts)},
             std::move(noise)) {}
};

template <FloatOrDouble Scalar>
using unimoe_router = top_k_router<Scalar>;

static_assert(DifferentiableRouter<vlmo_router<float>> && DifferentiableRouter<moma_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
