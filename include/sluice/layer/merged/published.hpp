/// Papers that merge experts into one, with their constants: a function a paper that makes its layer.
///
///   smear               adapters merged for every sequence                          layer/merged/merged_layer.hpp
///   smear_outputs       the same adapters with their outputs mixed, for comparison
///   mann                networks of three layers merged for every sample
///   meo                 linear maps, the k best of a sequence merged; noise and balance
///   meo_of_tokens       the same behind a small network that tells tokens of a sequence apart
///
/// What the papers leave open are arguments. All tokens of a group share a merged expert; groups are those of the
/// context.
#pragma once

#include <sluice/expert/activated.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/composed/chained_bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/linear.hpp>
#include <sluice/gate/features.hpp>
#include <sluice/gate/normalized.hpp>
#include <sluice/gate/normalized_weights.hpp>
#include <sluice/gate/per_group.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/linear.hpp>
#include <sluice/layer/merged/merged_layer.hpp>
#include <sluice/layer/network_gate.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/layer/sequence.hpp>
#include <sluice/loss/importance.hpp>
#include <sluice/loss/load.hpp>
#include <sluice/router/every_expert/dense_softmax.hpp>
#include <sluice/router/tokens_choose/noisy_top_k.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// softmax over a gate, every expert
template <typename Gate>
auto softmax_over(Gate gate) {
  return dense_softmax_router<typename Gate::scalar, Gate>(std::move(gate));
}

/// Normalised means meet normalised vectors of the experts.
template <FloatOrDouble S>
auto smear_gate(index_t width, index_t experts) {
  return normalized_gate{
      normalized_weights_gate{linear_gate<S>{width, experts, {.bias = true}}, layer_norm<S>{width, {.bias = true}}},
      layer_norm<S>{width, {.bias = true}}};
}

/// Adapters without a bias on the way up, nothing at first.
template <FloatOrDouble S>
auto smear_adapters(index_t width, index_t hidden, index_t experts) {
  return expert_bank<ffn<S, silu>>{experts, width, hidden, {.bias = true, .output_bias = false, .zero_output = true}};
}

}  // namespace detail

namespace published {

/// Muqeeth, Liu, Raffel 2023, SMEAR, arXiv:2306.03745. The caller adds x: residual_layer{smear<float>(...)}. Its plain
/// router, without norm of the experts' vectors, is one gate less. (released code; it starts W2 otherwise)
template <FloatOrDouble S>
auto smear(index_t width, index_t hidden, index_t experts) {
  return merged_layer{moe_layer{detail::softmax_over(detail::smear_gate<S>(width, experts)),
                                detail::smear_adapters<S>(width, hidden, experts)}};
}

/// Its soft routing: every expert runs on every token, and outputs are mixed by the same weights. E times the work.
template <FloatOrDouble S>
auto smear_outputs(index_t width, index_t hidden, index_t experts) {
  return moe_layer{detail::softmax_over(per_group_gate{detail::smear_gate<S>(width, experts)}),
                   detail::smear_adapters<S>(width, hidden, experts)};
}

/// Zhang, Starke, Komura, Saito 2018, "Mode-Adaptive Neural Networks for Quadruped Motion Control": three layers with
/// ELU between, merged by a small network that reads the context's group_features. A sample is a group. (an open
/// implementation for humanoid motion)
template <FloatOrDouble S>
auto mann(index_t inputs, index_t hidden, index_t outputs, index_t experts, index_t features, index_t gate_hidden) {
  sequence network{dense_layer{activated_expert<S, elu>{features, gate_hidden}},
                   dense_layer{activated_expert<S, elu>{gate_hidden, gate_hidden}},
                   linear_layer<S>{gate_hidden, experts}};
  chained_bank bank{expert_bank{experts, activated_expert<S, elu>{inputs, hidden}},
                    chained_bank{expert_bank{experts, activated_expert<S, elu>{hidden, hidden}},
                                 expert_bank{experts, linear_expert<S>{hidden, outputs, {.bias = true}}}}};
  return merged_layer{
      moe_layer{detail::softmax_over(features_gate{network_gate{std::move(network)}, inputs}), std::move(bank)}};
}

/// He et al. 2023, MEO, arXiv:2310.09832: one linear map of a Transformer; the two of a feed-forward network have a
/// router each. Shazeer's noise and both of his losses. (released code, where gate and noise start at zero)
template <FloatOrDouble S>
auto meo(index_t inputs, index_t outputs, index_t experts, index_t top_k, bool bias = false) {
  return merged_layer{moe_layer{
      learned_noise_top_k_router<S>{inputs, experts, {.top_k = top_k}},
      expert_bank{experts, linear_expert<S>{inputs, outputs, {.bias = bias}}},
      importance_loss{.coefficient = 0.01, .source = importance_source::sparse_gates, .form = variance::unbiased},
      load_loss{.coefficient = 0.01,
                .noise = load_form::learned_noise,
                .form = variance::unbiased,
                .counts_without_noise = true}}};
}

/// Its token level: x + U relu(V x) + biases in front, of which gate and map read. It starts as the identity. (released
/// code: hidden is D / 64 in encoders, D / 16 in decoders)
template <FloatOrDouble S>
auto meo_of_tokens(index_t inputs, index_t outputs, index_t experts, index_t top_k, index_t hidden, bool bias = false) {
  return sequence{residual_layer{dense_layer{ffn<S>{inputs, hidden, {.bias = true, .zero_output = true}}}},
                  meo<S>(inputs, outputs, experts, top_k, bias)};
}

}  // namespace published

}  // namespace sluice::inline SLUICE_ISA
