/// A gate that reads a text and an image: one decision an image, by a two-layer network over both.
///
///   tokens of an image: the groups of the context    text [G,F] = context.group_features    v = [text, mean of tokens]
///   logits = W2 gelu(W1 v + b1) + b2, the same for all tokens of the group                  W1 [H, F + D], W2 [E,H]
///
///   text_and_image_gate<float> gate(/*inputs=*/1024, /*experts=*/7, {.text = 4096});
///   offered_router<float, text_and_image_gate<float>> router(gate, {.top_k = 3});              MoVA's fine stage
///   residual_layer block{moe_layer{router, experts}};                                          x + sum of w_e f_e(x)
///
/// It is per_group_gate over joined_gate over network_gate, each of which stands for itself; GELU is that with the
/// error function. Padding and tokens with NaN have no part in the mean; NaN in a text makes its group invalid. The
/// gradient of the text is text_gradient(tape) [G,F] after backward. Not causal: an image's tokens decide together. The
/// paper starts with W2 and b2 at zero (zero_output), where all offered experts weigh the same. The block around it is
/// attention/encoder_fusion.hpp. Zong et al. 2024 (MoVA), arXiv:2404.13046, released code.
#pragma once

#include <sluice/expert/ffn.hpp>
#include <sluice/gate/joined.hpp>
#include <sluice/gate/per_group.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/network_gate.hpp>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Scalar>
using text_and_image_network = joined_gate<network_gate<dense_layer<ffn<Scalar, gelu>>>>;

}  // namespace detail

template <FloatOrDouble Scalar>
class text_and_image_gate : public per_group_gate<detail::text_and_image_network<Scalar>> {
  using base = per_group_gate<detail::text_and_image_network<Scalar>>;

public:
  struct options {
    index_t text = 1;          ///< F
    index_t hidden = 0;        ///< H; 0: D
    bool zero_output = false;  ///< W2 starts at zero: all that is offered weighs the same at first
  };

  /// Throws std::invalid_argument unless D, E and F are at least 1.
  text_and_image_gate(index_t inputs, index_t experts, options o)
      : base(detail::text_and_image_network<Scalar>(
            network_gate{dense_layer{
                ffn<Scalar, gelu>(o.text + inputs, o.hidden == 0 ? inputs : o.hidden,
                                  {.outputs = experts, .bias = true, .zero_output = o.zero_output})}},
            o.text)) {}

  /// W1, b1, W2, b2: up(), up_bias(), down(), down_bias().
  ffn<Scalar, gelu>& network() noexcept { return this->inner().inner().layer().expert(); }

  static const matrix_buffer<Scalar>& text_gradient(const typename base::tape& t) noexcept {
    return t.inner.features_gradient();
  }
};

static_assert(DifferentiableGate<text_and_image_gate<float>>);

}  // namespace sluice::inline SLUICE_ISA
