/// A convolution of which every image uses the channels of one expert: a way through a network, chosen image by image.
///
///   x [T, C H W], a row an image   scores [T,E] = context.features, of a network of its own   e = arg max scores[t]
///   y[t] = convolution_e(x[t])  [T, O H' W'], weight 1              equal scores: the lower expert
///   dscores[t,e] = <dy[t], y[t]>, the others' 0   (straight-through)      tape.router.gate.features_gradient()
///
///   chosen_channels_layer<float> layer({16, 32, 32}, /*experts=*/2, /*channels=*/8, window_shape::square(3, 1, 1));
///   context.features = scores;            the same for all layers of the model: their gradients add up
///
/// As wide as a convolution of E O channels, whose channels e O .. (e+1) O - 1 are those of expert e, and as dear as
/// one of O: the channels that are not chosen are computed neither forward nor backward. It is a moe_layer of
/// straight_through_router and convolution_experts, with all of its calls and promises, so padding images get zero, one
/// with NaN in it or its scores NaN, T may be 0. Batch normalisation behind it has statistics an expert, so it is part
/// of the expert. Where images are of several rows, groups of pixels say, advmoe_router over linear experts does the
/// same for 1 x 1 kernels. The released code trains in turns: experts with the router fixed, then the router
/// (train/model_part.hpp). Zhang et al. 2023, "Robust Mixture-of-Expert Training for Convolutional Neural Networks",
/// arXiv:2308.10110.
#pragma once

#include <sluice/expert/bank.hpp>
#include <sluice/expert/images/convolution.hpp>
#include <sluice/gate/features.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/straight_through.hpp>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class chosen_channels_layer : public moe_layer<straight_through_router<Scalar, features_gate<identity_gate<Scalar>>>,
                                               expert_bank<convolution_expert<Scalar>>> {
  using gate_type = features_gate<identity_gate<Scalar>>;
  using base = moe_layer<straight_through_router<Scalar, gate_type>, expert_bank<convolution_expert<Scalar>>>;

public:
  using options = typename convolution_expert<Scalar>::options;

  /// `channels` of each expert. Throws std::invalid_argument unless there are experts and channels and the window fits.
  chosen_channels_layer(image_shape image, index_t experts, index_t channels, window_shape window, options o = {})
      : base(straight_through_router<Scalar, gate_type>(gate_type(identity_gate<Scalar>(experts), image.size())),
             expert_bank<convolution_expert<Scalar>>(experts, convolution_expert<Scalar>(image, channels, window, o))) {
  }
};

/// AdvMoE's layer.
template <FloatOrDouble Scalar>
using advmoe_convolution = chosen_channels_layer<Scalar>;

}  // namespace sluice::inline SLUICE_ISA
