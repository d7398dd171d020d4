/// Several encoders flow into the tokens of one: those that were offered, by the weights of a text and the image.
///
///   x <- x + sum over the chosen encoders e of g_e CrossAttn_e(norm(x), norm(F_e))        F_e = context.encoders[e].rows
///   x <- x + SelfAttn(norm(x));   x <- x + SwiGLU(norm(x))                                x [T,D], a group an image
///   g = softmax over the k best of what is offered of W2 gelu(W1 [text, mean of tokens] + b1) + b2
///
///   const index_t widths[] = {1536, 512, 256};
///   auto block = encoder_fusion<float>(1024, widths, {.text = 1024, .heads = 16});
///   block.forward(x, y, tape, {.training = true, .groups = images, .expert_ids = offers, .group_features = texts,
///                              .encoders = states});
///
/// Text [G,F'] is context.group_features, offers are context.expert_ids [T,K], equal in an image (router/masked/
/// offered.hpp). What is not chosen has weight 0 and no gradient, and is not run; an image that is offered nothing has
/// the last two steps alone. All last maps start at zero: the block begins as y = x, with equal weights. It is made of
/// layers that are there: a moe_layer whose experts are cross attentions, each with norms of its own (network_bank), in
/// a sequence of residuals, with their calls, hidden tokens, NaN and T = 0. Attention in an image is not causal.
///
/// Zong et al. 2024 (MoVA), arXiv:2404.13046: three such blocks, whose caller takes the mean of x before and after
/// them. Norms and last maps have biases as in the released code, which besides has positions in two directions in both
/// attentions, and norms between heads and last map and inside of SwiGLU; those are not here, so its files do not load.
#pragma once

#include <sluice/attention/cross_attention.hpp>
#include <sluice/attention/self_attention.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/encoders/network_bank.hpp>
#include <sluice/layer/encoders/text_and_image_gate.hpp>
#include <sluice/layer/normalized.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/layer/sequence.hpp>
#include <sluice/router/masked/offered.hpp>

#include <span>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct encoder_fusion_options {
  index_t text = 1;  ///< F', the width of a text
  index_t heads = 1;
  index_t top_k = 3;        ///< encoders of an image, of those that are offered
  index_t hidden = 0;       ///< of SwiGLU; 0: 8 D / 3
  index_t gate_hidden = 0;  ///< 0: D
};

/// The block for tokens of width D and encoders of these widths. Throws std::invalid_argument unless D is a multiple of
/// heads, all widths are at least 1 and 2 <= k <= E.
template <FloatOrDouble Scalar>
auto encoder_fusion(index_t width, std::span<const index_t> encoders, const encoder_fusion_options& o) {
  using norm = layer_norm<Scalar>;
  using look = normalized_layer<cross_attention<Scalar, norm>, norm>;
  const typename norm::options with_bias{.bias = true};
  std::vector<look> looks;
  for (const index_t source : encoders)
    looks.emplace_back(cross_attention<Scalar, norm>{width,
                                                     {.encoder = static_cast<index_t>(looks.size()),
                                                      .source = source,
                                                      .heads = o.heads,
                                                      .output_bias = true,
                                                      .zero_output = true},
                                                     norm{source, with_bias}},
                       norm{width, with_bias});
  network_bank<look> bank(std::move(looks));
  using gate = text_and_image_gate<Scalar>;
  offered_router<Scalar, gate> router(
      gate(width, bank.experts(), {.text = o.text, .hidden = o.gate_hidden, .zero_output = true}), {.top_k = o.top_k});
  self_attention<Scalar, attention_order::bidirectional> among_tokens(
      width, {.heads = o.heads, .output_bias = true, .zero_output = true});
  gated_ffn<Scalar, silu> feed_forward(width, o.hidden == 0 ? width * 8 / 3 : o.hidden,
                                       {.bias = true, .zero_output = true});
  return sequence{residual_layer{moe_layer{std::move(router), std::move(bank)}},
                  residual_layer{normalized_layer{std::move(among_tokens), norm{width, with_bias}}},
                  residual_layer{normalized_layer{dense_layer{std::move(feed_forward)}, norm{width, with_bias}}}};
}

/// MoVA's adapter block.
template <FloatOrDouble Scalar>
using mova_block = decltype(encoder_fusion<Scalar>(index_t(), std::span<const index_t>(), encoder_fusion_options()));

}  // namespace sluice::inline SLUICE_ISA
