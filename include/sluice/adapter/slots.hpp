/// Adapters that work on averages of tokens: Soft MoE's slots, with small experts.
///
///   soft_moa             slots and adapters U phi(D z + b) + c; tokens and slots as they are
///   normalized_soft_moa  tokens of unit length everywhere, slots by their length over the experts, times a scale
///   dense_moa            the comparison: every adapter on every token, weighed by a softmax
///   slot_low_rank        low-rank experts on slots
///   omni_slot_low_rank   three of these side by side: for all tokens, for text, for images
///
///   residual_layer block{normalized_layer{adapted_layer{feed_forward, published::soft_moa<float>(768, 48, 7)},
///                                        layer_norm<float>{768}}};
///
/// Groups of the context are sequences or images; routing, padding and NaN: router/every_expert/soft_moe.hpp.
/// The adapters stand in parallel to what is frozen (adapter/adapted.hpp). U, b and c start at zero. As released D
/// does as well, so that c alone learns at first; here D starts as other experts' first maps do.
/// Cappellazzo et al. 2024, arXiv:2402.00828 (Soft-MoA; released code). slot_low_rank is a reading of Wu et al. 2023,
/// arXiv:2312.00968 (Omni-SMoLA), of which the abstract was readable: ranks, norms and how many slots are not in it,
/// and its own name stays free.
#pragma once

#include <sluice/adapter/low_rank.hpp>
#include <sluice/adapter/of_modality.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/layer/beside.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/normalized.hpp>
#include <sluice/router/every_expert/dense_softmax.hpp>
#include <sluice/router/every_expert/slots_across_experts.hpp>
#include <sluice/router/every_expert/soft_moe.hpp>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <FloatOrDouble Scalar>
auto bottleneck_adapters(index_t width, index_t hidden, index_t experts) {
  return expert_bank<ffn<Scalar, gelu>>{experts, width, hidden, {.bias = true, .zero_output = true}};
}

}  // namespace detail

namespace published {

template <FloatOrDouble Scalar>
auto soft_moa(index_t width, index_t hidden, index_t experts, index_t slots_per_expert = 1) {
  using router = soft_moe_router<Scalar, no_norm<Scalar>, no_norm<Scalar>>;
  return moe_layer{router{width, experts, {.slots_per_expert = slots_per_expert, .learned_scale = false}},
                   detail::bottleneck_adapters<Scalar>(width, hidden, experts)};
}

template <FloatOrDouble Scalar>
auto normalized_soft_moa(index_t width, index_t hidden, index_t experts, index_t slots_per_expert = 1) {
  using router = soft_moe_router<Scalar, no_norm<Scalar>, slots_across_experts<Scalar>>;
  return normalized_layer{moe_layer{router{width,
                                           experts,
                                           {.slots_per_expert = slots_per_expert},
                                           no_norm<Scalar>{},
                                           slots_across_experts<Scalar>{slots_per_expert}},
                                    detail::bottleneck_adapters<Scalar>(width, hidden, experts)},
                          unit_norm<Scalar>{width, /*epsilon=*/0, /*smallest=*/0, /*added=*/Scalar(1e-6)}};
}

template <FloatOrDouble Scalar>
auto dense_moa(index_t width, index_t hidden, index_t experts) {
  return moe_layer{dense_softmax_router<Scalar>{linear_gate<Scalar>{width, experts, {.bias = true}}},
                   detail::bottleneck_adapters<Scalar>(width, hidden, experts)};
}

}  // namespace published

struct slot_low_rank_options {
  index_t outputs = 0;  ///< D'; 0 means D
  index_t slots_per_expert = 1;
  double scale = 1;
};

template <FloatOrDouble Scalar>
auto slot_low_rank(index_t inputs, index_t rank, index_t experts, slot_low_rank_options o = {}) {
  return moe_layer{soft_moe_router<Scalar>{inputs, experts, {.slots_per_expert = o.slots_per_expert}},
                   expert_bank<low_rank_expert<Scalar>>{
                       experts, inputs, rank, {.outputs = o.outputs, .scale = static_cast<Scalar>(o.scale)}}};
}

/// The experts for one modality see its tokens alone, in their slots too. Modalities are numbers of the context's
/// modality_ids.
template <FloatOrDouble Scalar>
auto omni_slot_low_rank(index_t inputs, index_t rank, index_t experts, index_t text, index_t image,
                        slot_low_rank_options o = {}) {
  const auto adapters = slot_low_rank<Scalar>(inputs, rank, experts, o);
  return beside_layer{adapters, beside_layer{modality_layer{adapters, text}, modality_layer{adapters, image}}};
}

}  // namespace sluice::inline SLUICE_ISA
