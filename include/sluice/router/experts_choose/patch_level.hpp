/// Patch-level routing (pMoE): of every image each expert takes the l patches that score best with its own vector.
///
///   X [T,D] patches, the groups of the context are images of n patches   W [E,D]   G the weights, [E,n] for each image
///
///   over_taken    G = softmax over the l patches taken of their scores        MNIST code
///   over_patches  G = softmax over all n patches, of the l taken              CIFAR-10 code
///   even          G = 1, no gradient: routers trained apart from the experts
///   f_e(G x[t]) for the patches that e took
///
/// Weights act on the experts' inputs, so that experts with a batch normalisation after the gate see them; behind ReLU
/// without biases that is the same as on the outputs. All E l rows of an image are used; a patch may be taken by
/// several experts or by none. What the paper does with the outputs, the mean over the n patches of an image with
/// experts side by side, is layer/images/patch_experts.hpp: pmoe_layer.
/// It is expert choice (router/experts_choose/expert_choice.hpp: ties, NaN, T = 0, gradients) within an image, with
/// scores that compete over patches in place of experts; E selections of l from n and a plan of E l rows an image make
/// it up to twice a top-2 router where l E is 8 n. An l beyond n takes all patches. Initial W normal; no bias, no
/// noise, no balance loss. Chowdhury et al. 2023, "Patch-level Routing in Mixture-of-Experts is Provably
/// Sample-efficient for Convolutional Neural Networks", arXiv:2306.04073.
#pragma once

#include <sluice/router/experts_choose/expert_choice.hpp>

namespace sluice::inline SLUICE_ISA {

enum class patch_gate { over_taken, over_patches, even };

/// sluice::pmoe_router<float> router(48, 8, 16);   8 experts take 16 patches of 48 numbers each
template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>>
class pmoe_router : public expert_choice_router<Scalar, GateType> {
  using base = expert_choice_router<Scalar, GateType>;

public:
  /// Throws std::invalid_argument if patches < 1.
  pmoe_router(index_t inputs, index_t experts, index_t patches, patch_gate form = patch_gate::over_patches)
    requires std::constructible_from<GateType, index_t, index_t>
      : pmoe_router(GateType(inputs, experts), patches, form) {}
  pmoe_router(GateType gate, index_t patches, patch_gate form = patch_gate::over_patches)
      : base(std::move(gate), {.capacity = capacity_limit::fixed(patches), .scores = scores_of(form)}, {},
             {.use = form == patch_gate::even ? weight_use::output : weight_use::input}) {}

private:
  static typename base::score scores_of(patch_gate form) {
    switch (form) {
      case patch_gate::over_taken:
        return base::score::over_taken;
      case patch_gate::over_patches:
        return base::score::over_tokens;
      case patch_gate::even:
        break;
    }
    return base::score::even;
  }
};

static_assert(DifferentiableRouter<pmoe_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
