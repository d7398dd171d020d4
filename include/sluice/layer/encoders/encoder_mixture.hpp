/// Mixtures of encoders: networks of unlike kinds, lengths and widths look at an image, and what the chosen ones saw is
/// brought to one form and added up.
///
///   x [T,D], a row an image   encoder e: [T,D] -> [T, L_e W_e], L_e tokens of width W_e
///   merged_encoder: m = L_e / L neighbours become one, then a linear map: [T, L_e W_e] -> [T, L W]
///   y[t] = sum over the encoders e of t of w_e merged_e(x[t])                             [T, L W]
///
///   auto layer = encoder_mixture(router, merged_encoder(first, {.tokens = 576, .merged = 64, .width = 1024}),
///                                merged_encoder(second, {.tokens = 64, .merged = 64, .width = 1024}));
///   auto fused = sequence{encoder_mixture(dense_router<float>{D, 2}, ...), unfolded_layer{second_map, 64}};
///
/// Who is asked, the router says: by a text beside the image (offered_router over gate/features.hpp, with the encoders
/// that a language model named in context.expert_ids; those that were not are not run), by the image itself, or all of
/// them with weight 1 (dense_router), which is MouSi's fusion: patches that are merged, a first map an encoder, and a
/// second one that all share. What MouSi's sizes are is not said where we could read; the maps' widths are the
/// caller's. An encoder whose parameters are frozen is left alone by optimisers (set_frozen). The layer is a moe_layer
/// of an expert_union of network_banks, with all of their calls. T = 0, padding and NaN as there. Fan et al. 2024
/// (MouSi), arXiv:2401.17221; Zong et al. 2024 (MoVA), arXiv:2404.13046.
#pragma once

#include <sluice/expert/union.hpp>
#include <sluice/layer/encoders/network_bank.hpp>
#include <sluice/layer/encoders/unfolded.hpp>
#include <sluice/layer/linear.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/sequence.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

struct merged_tokens {
  index_t tokens = 1;  ///< L_e, that the encoder gives
  index_t merged = 1;  ///< L, that are left of them
  index_t width = 1;   ///< W of each
  bool bias = true;
};

/// An encoder whose tokens are merged m = L_e / L at a time. Throws std::invalid_argument unless the tokens divide what
/// it gives and m is a whole number.
template <typename Encoder>
auto merged_encoder(Encoder encoder, merged_tokens form) {
  using scalar = typename Encoder::scalar;
  if (form.tokens < 1 || form.merged < 1 || form.tokens % form.merged != 0 || encoder.outputs() % form.tokens != 0)
    throw_invalid("an encoder that gives ", encoder.outputs(), " numbers cannot give ", form.tokens,
                  " tokens that are merged into ", form.merged);
  const index_t together = encoder.outputs() / form.merged;
  unfolded_layer merge{linear_layer<scalar>{together, form.width, {.bias = form.bias}}, form.merged};
  return sequence{std::move(encoder), std::move(merge)};
}

/// The mixture; the router chooses among as many experts as there are encoders.
template <typename Router, typename... Encoders>
auto encoder_mixture(Router router, Encoders... encoders) {
  return moe_layer{std::move(router), expert_union{network_bank<Encoders>(1, encoders)...}};
}

}  // namespace sluice::inline SLUICE_ISA
