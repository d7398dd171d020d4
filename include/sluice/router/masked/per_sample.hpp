/// Routers that decide once a sample: all tokens of a group share their experts. What differs is whom they ask.
///
///   mobile_vmoe_router  mean of the image's patches (or its class token)  softmax over E, top 1, weight p
///                       {.top_k = 1, .weights = weighting::pre}; loss expert_target_loss, the super-class of the label
///   instance_router     context.group_features: the instruction           softmax, top 2, over their sum + 1e-9
///                       {.top_k = 2, .added_to_sum = 1e-9}                Octavius
///   thinned_instance_router   the same by the rule of gshard_router: the second expert may be left out at random, for
///                       all tokens of a sample at once
///   mocle_router        context.cluster_ids, the same for all of a sample softmax at a temperature, top 1, weight p
///                       mocle_gate<float>(D, E, clusters, width, {.temperature = 0.05f, .noise_std = 0.1f}),
///                       {.top_k = 1, .weights = weighting::pre}; universal_expert_router around it; MoCE without
///   advmoe_router       context.group_features: scores [G,E] of one network for all layers; arg max, weight 1,
///                       straight-through (router/tokens_choose/straight_through.hpp)
///
/// Samples are the groups of the context. The mechanism is gate/per_group.hpp: what NaN, padding and T = 0 do, and
/// where gradients of instructions and scores are. The rules are those of token choice, and each token asks its expert
/// for itself: with a capacity, tokens of one sample may fare differently.
/// Coefficients and initial values that the papers leave open are the user's. MoCE: each cluster its expert, clusters
/// balanced; its imbalance and entropy terms are importance_loss and entropy_loss, of unknown coefficients.
/// Daxberger et al. 2023, arXiv:2309.04354; Chen et al. 2023, arXiv:2311.02684; Gou et al. 2023, arXiv:2312.12379; Liu
/// et al. 2024, arXiv:2402.05382; Zhang et al. 2023, arXiv:2308.10110.
#pragma once

#include <sluice/gate/cluster.hpp>
#include <sluice/gate/identity.hpp>
#include <sluice/gate/noisy.hpp>
#include <sluice/gate/per_group.hpp>
#include <sluice/router/tokens_choose/gshard_top2.hpp>
#include <sluice/router/tokens_choose/straight_through.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/router/universal_expert.hpp>

namespace sluice::inline SLUICE_ISA {

/// Top-k over a gate that sees one vector a sample.
template <FloatOrDouble Scalar, typename GateType>
using per_sample_router = top_k_router<Scalar, dynamic, dynamic, GateType>;

template <FloatOrDouble Scalar, group_source Source = group_source::mean_of_tokens>
using mobile_vmoe_router = per_sample_router<Scalar, per_group_gate<linear_gate<Scalar>, Source>>;

template <FloatOrDouble Scalar>
using instance_router = per_sample_router<Scalar, per_group_gate<linear_gate<Scalar>, group_source::group_vector>>;

template <FloatOrDouble Scalar>
using thinned_instance_router =
    gshard_router<Scalar, dynamic, dynamic, per_group_gate<linear_gate<Scalar>, group_source::group_vector>, dropless>;

/// Scores by the sample's cluster; noise is drawn once a sample, and divided by the temperature.
template <FloatOrDouble Scalar>
class mocle_gate : public per_group_gate<noisy_gate<cluster_gate<Scalar>>, group_source::ids> {
  using base = per_group_gate<noisy_gate<cluster_gate<Scalar>>, group_source::ids>;

public:
  using options = typename noisy_gate<cluster_gate<Scalar>>::options;

  mocle_gate(index_t inputs, index_t experts, index_t clusters, index_t width, options o = {})
      : base(noisy_gate<cluster_gate<Scalar>>(cluster_gate<Scalar>(inputs, experts, clusters, width), o)) {}

  cluster_gate<Scalar>& clusters() noexcept { return this->inner().inner(); }
};

template <FloatOrDouble Scalar>
using mocle_router = per_sample_router<Scalar, mocle_gate<Scalar>>;

template <FloatOrDouble Scalar>
using advmoe_router =
    straight_through_router<Scalar, per_group_gate<identity_gate<Scalar>, group_source::group_vector>>;

static_assert(DifferentiableRouter<mobile_vmoe_router<float>> && DifferentiableRouter<instance_router<float>>);
static_assert(DifferentiableRouter<universal_expert_router<mocle_router<float>>>);
static_assert(DifferentiableRouter<advmoe_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
