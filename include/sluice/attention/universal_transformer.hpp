/// A universal transformer of mixtures, MoEUT: a few layers that take turns for as long as one likes, in which
/// attention's values and outputs and the whole feed-forward part are experts'.
///
///   x <- x + attention(x)      choices, queries and keys of layer_norm(x), values of x    (routed_value_attention.hpp)
///   x <- x + sum over the chosen e of sigmoid(s_e) V_e relu(K_e x)       s = W_s layer_norm'(x), the experts read x
///   such layers one after the other, and again                                            (layer/depth/repeated.hpp)
///
///   auto stack = make_moeut<float>({.width = 412, .layers = 16, .taking_turns = 2, .heads = 4, .key_width = 82});
///   moeut_balance<float> balance(stack);          loss = balance(tape, context), between forward and backward
///
/// balance is minus the entropy of experts over all rounds of a layer, for every sequence of the context's groups: 0.01
/// of the mixtures', 0.001 of each of attention's two (loss_over_rounds.hpp). There is no norm behind the last layer.
/// Sizes of the paper (width, layers, taking turns, heads, key width, experts, attention's experts): 44M 412 16 2 4 82
/// 155 8, 244M 1024 18 2 4 128 387 10, 1B 1536 24 4 6 128 565 12; experts of hidden width 128. Initial values are those
/// of the parts, not the paper's. With one expert a head attention is another type: routed_value_attention.hpp says
/// which. Csordas et al. 2024, "MoEUT: Mixture-of-Experts Universal Transformers", arXiv:2405.16039.
#pragma once

#include <sluice/attention/routed_value_attention.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/gate/normalized.hpp>
#include <sluice/layer/depth/loss_over_rounds.hpp>
#include <sluice/layer/depth/repeated.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/layer/sequence.hpp>
#include <sluice/loss/entropy.hpp>

#include <tuple>
#include <vector>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
using moeut_router = sigmoid_router<Scalar, dynamic, dynamic, normalized_gate<linear_gate<Scalar>, layer_norm<Scalar>>>;

template <FloatOrDouble Scalar>
using moeut_layer = sequence<residual_layer<switch_head<Scalar>>,
                             residual_layer<moe_layer<moeut_router<Scalar>, expert_bank<ffn<Scalar>>>>>;

template <FloatOrDouble Scalar>
using moeut = repeated_layers<moeut_layer<Scalar>>;

struct moeut_options {
  index_t width = 412;
  index_t layers = 16;       ///< as they are applied
  index_t taking_turns = 2;  ///< as there are
  index_t heads = 4;
  index_t key_width = 82;  ///< of a head, even; the first half of it is turned by position
  index_t attention_experts = 8;
  index_t attention_top_k = 2;
  index_t experts = 155;
  index_t hidden = 128;
  index_t top_k = 12;
  double attention_dropout = 0;  ///< of experts, in training
  double dropout = 0;
};

/// Throws std::invalid_argument if the layers are not a number of whole rounds, or their parts refuse the sizes.
template <FloatOrDouble Scalar>
moeut<Scalar> make_moeut(const moeut_options& o) {
  if (o.taking_turns < 1 || o.layers < 1 || o.layers % o.taking_turns != 0)
    throw_invalid("moeut needs layers that are rounds of those that take turns, not ", o.layers, " of ",
                  o.taking_turns);
  const head_router routing{
      sigmoid_router<Scalar>(o.width, o.heads * o.attention_experts,
                             switch_head_routing<Scalar>(o.heads, o.attention_top_k, o.attention_dropout))};
  const moeut_layer<Scalar> one{
      residual_layer{
          switch_head<Scalar>(routing, routing, layer_norm<Scalar>(o.width, {.bias = true}),
                              {.heads = o.heads, .key_width = o.key_width, .rotary = {.width = o.key_width / 4 * 2}})},
      residual_layer{moe_layer{
          moeut_router<Scalar>(
              normalized_gate(linear_gate<Scalar>(o.width, o.experts), layer_norm<Scalar>(o.width, {.bias = true})),
              {.top_k = o.top_k, .renormalize = false, .selection_bias = false, .expert_dropout = o.dropout}),
          expert_bank<ffn<Scalar>>(o.experts, o.width, o.hidden)}}};
  return moeut<Scalar>(std::vector<moeut_layer<Scalar>>(as_size(o.taking_turns), one),
                       {.rounds = o.layers / o.taking_turns});
}

/// What keeps the experts of a stack busy over all rounds.
template <FloatOrDouble Scalar>
class moeut_balance {
public:
  struct options {
    double mixtures = 0.01;
    double attention = 0.001;  ///< of values and of outputs each
  };

  explicit moeut_balance(const moeut<Scalar>& stack, options o = {})
      : layers_(stack.layers()),
        mixtures_(entropy_loss{.coefficient = o.mixtures}),
        attention_(entropy_loss{.coefficient = o.attention,
                                .parts = stack.layer(0).template layer<0>().layer().attention_shape().heads}) {}

  /// The sum over the layers that take turns; its gradients wait in the tape. Call it before backward.
  Scalar operator()(typename moeut<Scalar>::tape& t, const routing_context<Scalar>& context) {
    Scalar sum = 0;
    for (index_t g = 0; g < layers_; ++g) {
      sum += mixtures_(
          t, layers_, g, [](auto& round) -> auto& { return std::get<1>(round.layers).layer; }, context);
      sum += attention_(
          t, layers_, g, [](auto& round) -> auto& { return std::get<0>(round.layers).layer.value; }, context);
      sum += attention_(
          t, layers_, g, [](auto& round) -> auto& { return std::get<0>(round.layers).layer.output; }, context);
    }
    return sum;
  }

private:
  index_t layers_;
  loss_over_rounds<Scalar, entropy_loss> mixtures_, attention_;
};

}  // namespace sluice::inline SLUICE_ISA
