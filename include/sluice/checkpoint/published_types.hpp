/// The layer types of published models, and how their config makes one.
///
///   mixtral_layer, olmoe_layer, qwen3_moe_layer   top-k softmax router, SwiGLU experts
///   deepseek_v2_layer                             the same beside a shared expert
///   qwen2_moe_layer                               the same, the shared expert behind a sigmoid gate
///   scored_layer                                  scores beside which a bias may choose
///   deepseek_v3_layer, llama4_layer               the same, beside a shared expert
///   deepseek_v4_layer                             the same, experts clamped
///   deepseek_v4_hash_layer                        the same, but a table says by the token's id which experts
///   nemotron_layer                                the same, experts without a gate
///   nemotron_latent_layer                         and these work on a projection of the token
///   longcat_layer                                 scores beside a bias, some experts return their input
///   gemma4_layer                                  a mixture and a dense branch, each between norms of its own
///   phimoe_layer                                  SparseMixer
///   jetmoe_layer                                  top-k softmax router, one bias added to the sum of experts
///   gpt_oss_layer                                 biased router, clamped gated experts with biases
///   switch_layer                                  top-1 with a fixed capacity, ReLU experts
///   megatron_layer                                top-k, capacity by probability
///
/// All are <Scalar, Storage of the experts' weights>. A family has one of them by its row in family_forms.hpp, with or
/// without a shared expert by its config; with_published_type finds it. DeepSeek-V4 has two, by the block. A model of
/// one expert a token whose weights are normalised is loaded as it is: every weight is the scaling, and of a training
/// only the losses reach its gate (options.constant_weight).
#pragma once

#include <sluice/capacity/position.hpp>
#include <sluice/capacity/probability.hpp>
#include <sluice/checkpoint/family_forms.hpp>
#include <sluice/checkpoint/model_config.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/clamped_glu.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/latent_bank.hpp>
#include <sluice/expert/normalized_bank.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/expert/union.hpp>
#include <sluice/gate/normalized.hpp>
#include <sluice/layer/beside.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/normalized.hpp>
#include <sluice/layer/output_bias.hpp>
#include <sluice/layer/output_normalized.hpp>
#include <sluice/layer/shared_expert.hpp>
#include <sluice/router/fixed/hash.hpp>
#include <sluice/router/tokens_choose/sigmoid_top_k.hpp>
#include <sluice/router/tokens_choose/sparse_mixer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <std::floating_point Scalar, typename Capacity>
using limited_top_k = top_k_router<Scalar, dynamic, dynamic, linear_gate<Scalar>, no_noise<Scalar>, Capacity>;

template <std::floating_point Scalar>
using scored_hash_router = hash_router<Scalar, linear_gate<Scalar>, sigmoid_rule<Scalar>>;

template <typename Router, typename Expert>
using layer_of = moe_layer<Router, expert_bank<Expert>>;

}  // namespace detail

template <std::floating_point Scalar, MapStorage Storage = full_precision<Scalar>>
using mixtral_layer = detail::layer_of<top_k_router<Scalar>, swiglu<Scalar, Storage>>;
template <std::floating_point Scalar, MapStorage Storage = full_precision<Scalar>>
using olmoe_layer = mixtral_layer<Scalar, Storage>;
template <std::floating_point Scalar, MapStorage Storage = full_precision<Scalar>>
using qwen3_moe_layer = mixtral_layer<Scalar, Storage>;
template <std::floating_point Scalar, MapStorage Storage = full_precision<Scalar>>
using deepseek_v2_layer = shared_expert_layer<mixtral_layer<Scalar, Storage>, swiglu<Scalar, Storage>>;
template <std::floating_point Scalar, MapStorage Storage = full_precision<Scalar>>
using qwen2_moe_layer = shared_expert_layer<mixtral_layer<Scalar, Storage>, swiglu<Scalar, Storage>, true>;
template <std::floating_point Scalar, MapStorage Storage = full_precision<Scalar>>
using deepseek_v3_layer =
    shared_expert_layer<detail::layer_of<sigmoid_router<Scalar>, swiglu<Scalar, Storage>>, swiglu<Scalar, Storage>>;
template <std::floating_point Scalar, MapStorage Storage = full_precision<Scalar>>
using llama4_layer = deepseek_v3_layer<Scalar, Storage>;
template <std::floating_point Scalar, MapStorage Storage = full_precision<Scalar>>
using phimoe_layer = detail::layer_of<sparse_mixer_router<Scalar>, swiglu<Scalar, Storage>>;
template <std::floating_point Scalar, MapStorage Storage = full_precision<Scalar>>
using jetmoe_layer = output_bias_layer<mixtral_layer<Scalar, Storage>>;
template <std::floating_point Scalar, MapStorage Storage = full_precision<Scalar>>
using gpt_oss_layer = detail::layer_of<top_k_router<Scalar>, clamped_glu<Scalar, Storage>>;
template <std::floating_point Scalar, MapStorage Storage = full_precision<Scalar>>
using switch_layer = detail::layer_of<detail::limited_top_k<Scalar, position_capacity>, ffn<Scalar, relu, Storage>>;
template <std::floating_point Scalar, MapStorage Storage = full_precision<Scalar>>
using megatron_layer = detail::layer_of<detail::limited_top_k<Scalar, probability_capacity>, swiglu<Scalar, Storage>>;

/// DeepSeek-V3's router without a shared expert.
template <std::floating_point Scalar, MapStorage Storage = full_precision<Scalar>>
using scored_layer = detail::layer_of<sigmoid_router<Scalar>, swiglu<Scalar, Storage>>;

/// Nemotron-3: the same router, experts of one matrix and a squared ReLU.
template <std::floating_point Scalar, MapStorage Storage = full_precision<Scalar>>
using nemotron_layer = shared_expert_layer<detail::layer_of<sigmoid_router<Scalar>, ffn<Scalar, squared_relu, Storage>>,
                                           ffn<Scalar, squared_relu, Storage>>;
template <std::floating_point Scalar, MapStorage Storage = full_precision<Scalar>>
using nemotron_latent_layer =
    shared_expert_layer<moe_layer<sigmoid_router<Scalar>, latent_bank<expert_bank<ffn<Scalar, squared_relu, Storage>>>>,
                        ffn<Scalar, squared_relu, Storage>>;
/// LongCat-Flash: behind the experts, some that return their input.
template <std::floating_point Scalar, MapStorage Storage = full_precision<Scalar>>
using longcat_layer =
    moe_layer<sigmoid_router<Scalar>,
              expert_union<expert_bank<swiglu<Scalar, Storage>>, expert_bank<identity_expert<Scalar>>>>;
template <std::floating_point Scalar, MapStorage Storage = full_precision<Scalar>>
using deepseek_v4_layer = shared_expert_layer<detail::layer_of<sigmoid_router<Scalar>, clamped_glu<Scalar, Storage>>,
                                              clamped_glu<Scalar, Storage>>;
template <std::floating_point Scalar, MapStorage Storage = full_precision<Scalar>>
using deepseek_v4_hash_layer =
    shared_expert_layer<detail::layer_of<detail::scored_hash_router<Scalar>, clamped_glu<Scalar, Storage>>,
                        clamped_glu<Scalar, Storage>>;

/// Gemma 4: x is the residual stream, y what its last norm before the next addition reads. The router sees x
/// normalised and scaled, the experts x normalised; a dense branch stands beside them, and each branch is normalised
/// before the sum.
template <std::floating_point Scalar, MapStorage Storage = full_precision<Scalar>>
using gemma4_layer = beside_layer<
    output_normalized_layer<
        moe_layer<sigmoid_router<Scalar, dynamic, dynamic, normalized_gate<linear_gate<Scalar>, rms_norm<Scalar>>>,
                  normalized_bank<expert_bank<gated_ffn<Scalar, gelu_tanh, Storage>>, rms_norm<Scalar>>>,
        rms_norm<Scalar>>,
    output_normalized_layer<
        normalized_layer<dense_layer<gated_ffn<Scalar, gelu_tanh, Storage>>, rms_norm<Scalar>>, rms_norm<Scalar>>>;

/// f(std::type_identity<Layer>{}) with the layer type of a model; returns what f returns.
template <std::floating_point Scalar, MapStorage Storage = full_precision<Scalar>, typename F>
decltype(auto) with_published_type(const model_config& config, const block_id& block, F&& f) {
  using enum detail::layer_form;
  const detail::family_form& form = detail::form_of(config.family);
  const detail::shared_form shared = config.shared_hidden > 0 ? form.shared : detail::shared_form::none;
  // What a form has more than another may be of no size in a model.
  switch (form.form == with_copies && config.zero_experts == 0 ? scored : form.form) {
    case scored:
      if (shared == detail::shared_form::none) return f(std::type_identity<scored_layer<Scalar, Storage>>{});
      return f(std::type_identity<deepseek_v3_layer<Scalar, Storage>>{});
    case sparse_mixer:
      return f(std::type_identity<phimoe_layer<Scalar, Storage>>{});
    case top_k_biased:
      return f(std::type_identity<jetmoe_layer<Scalar, Storage>>{});
    case clamped:
      return f(std::type_identity<gpt_oss_layer<Scalar, Storage>>{});
    case first_come:
      return f(std::type_identity<switch_layer<Scalar, Storage>>{});
    case most_likely:
      return f(std::type_identity<megatron_layer<Scalar, Storage>>{});
    case ungated:
      if (config.latent > 0) return f(std::type_identity<nemotron_latent_layer<Scalar, Storage>>{});
      return f(std::type_identity<nemotron_layer<Scalar, Storage>>{});
    case with_copies:
      return f(std::type_identity<longcat_layer<Scalar, Storage>>{});
    case scored_clamped:
      if (config.looks_experts_up(block)) return f(std::type_identity<deepseek_v4_hash_layer<Scalar, Storage>>{});
      return f(std::type_identity<deepseek_v4_layer<Scalar, Storage>>{});
    case normed_branches:
      return f(std::type_identity<gemma4_layer<Scalar, Storage>>{});
    case top_k:
      break;
  }
  if (shared == detail::shared_form::gated) return f(std::type_identity<qwen2_moe_layer<Scalar, Storage>>{});
  if (shared == detail::shared_form::plain) return f(std::type_identity<deepseek_v2_layer<Scalar, Storage>>{});
  return f(std::type_identity<mixtral_layer<Scalar, Storage>>{});
}

namespace detail {

/// Makes a T, a router, an expert or a layer, of the sizes and conventions of a config. Weights stay at zero.
template <typename T>
struct published;

template <std::floating_point Scalar, typename Capacity>
struct published<limited_top_k<Scalar, Capacity>> {
  static auto make(const model_config& c) {
    const family_form& form = form_of(c.family);
    typename limited_top_k<Scalar, Capacity>::options o{.top_k = c.top_k,
                                                        .weights = weights(c, form),
                                                        .constant_weight = true,
                                                        .smallest_sum = static_cast<Scalar>(form.smallest_sum),
                                                        .added_to_sum = static_cast<Scalar>(form.added_to_sum),
                                                        .scaling = static_cast<Scalar>(c.scaling),
                                                        .groups = c.groups};
    return limited_top_k<Scalar, Capacity>(linear_gate<Scalar>(c.inputs, c.experts, {.bias = c.router_bias}), o, {},
                                           capacity(c, std::type_identity<Capacity>{}));
  }

private:
  static weighting weights(const model_config& c, const family_form& form) {
    if (form.softmax_over_chosen || !c.softmax_first) return weighting::post;
    return c.renormalize ? weighting::renorm : weighting::pre;
  }
  static dropless capacity(const model_config&, std::type_identity<dropless>) { return {}; }
  static position_capacity capacity(const model_config& c, std::type_identity<position_capacity>) {
    return position_capacity(capacity_limit::fixed(c.capacity));
  }
  static probability_capacity capacity(const model_config& c, std::type_identity<probability_capacity>) {
    // Without a factor nothing is dropped: E times the mean load is all there is.
    const double factor = c.capacity_factor > 0 ? c.capacity_factor : static_cast<double>(c.experts);
    return probability_capacity(capacity_limit::megatron({factor}));
  }
};

template <std::floating_point Scalar>
typename sigmoid_rule<Scalar>::options scored_options(const model_config& c) {
  const family_form& form = form_of(c.family);
  return {.top_k = c.top_k,
          .renormalize = c.renormalize,
          .constant_weight = true,
          .selection_bias = form.selection_bias && c.selection_bias,
          .added_to_sum = static_cast<Scalar>(form.added_to_sum),
          .scaling = static_cast<Scalar>(c.scaling),
          .groups = c.groups,
          .use = form.weighs_inputs ? weight_use::input : weight_use::output,
          .scores = form.scores,
          .smallest_sum = static_cast<Scalar>(c.smallest_sum)};
}

template <std::floating_point Scalar>
struct published<sigmoid_router<Scalar>> {
  static auto make(const model_config& c) {
    return sigmoid_router<Scalar>(c.inputs, c.experts + c.zero_experts, scored_options<Scalar>(c));
  }
};

template <std::floating_point Scalar>
struct published<scored_hash_router<Scalar>> {
  static auto make(const model_config& c) {
    auto weights = scored_options<Scalar>(c);
    weights.selection_bias = false;
    return scored_hash_router<Scalar>(linear_gate<Scalar>(c.inputs, c.experts),
                                      {c.vocabulary, c.top_k, sigmoid_rule<Scalar>(c.experts, weights)});
  }
};

template <std::floating_point Scalar>
struct published<sparse_mixer_router<Scalar>> {
  static auto make(const model_config& c) {
    return sparse_mixer_router<Scalar>(c.inputs, c.experts,
                                       {.top_k = c.top_k, .jitter = static_cast<Scalar>(c.jitter)});
  }
};

/// What an expert of a model does, in its options.
template <typename Expert>
typename Expert::options published_options(const model_config& c) {
  using scalar = typename Expert::scalar;
  typename Expert::options o{};
  if constexpr (requires { o.gating.limit; }) {
    o.gating.limit = static_cast<scalar>(c.clamp);
    o.bias = form_of(c.family).form == layer_form::clamped;
    if (!o.bias) {
      o.gating.alpha = scalar(1), o.gating.up_offset = scalar(0);  // SwiGLU but for the clamps
      if (!(c.clamp > 0)) o.gating.limit = (std::numeric_limits<scalar>::max)();  // DeepSeek-V4's 0: none
    }
  }
  return o;
}

}  // namespace detail

/// The routed experts of a layer alone, with the sizes and conventions of a config, their weights at zero: those that
/// read the layer's tokens as they are.
template <typename Expert>
expert_bank<Expert> make_published_experts(const model_config& c) {
  return expert_bank<Expert>(c.experts, c.inputs, c.hidden, detail::published_options<Expert>(c));
}

namespace detail {

template <typename Router, typename Expert>
struct published<moe_layer<Router, expert_bank<Expert>>> {
  using storage = typename Expert::storage;
  static auto make(const model_config& c) {
    return moe_layer(published<Router>::make(c), make_published_experts<Expert>(c));
  }
};

template <typename Router, typename Expert>
struct published<moe_layer<Router, latent_bank<expert_bank<Expert>>>> {
  using storage = typename Expert::storage;
  static auto make(const model_config& c) {
    return moe_layer(published<Router>::make(c),
                     latent_bank(expert_bank<Expert>(c.experts, c.latent, c.hidden), c.inputs, c.inputs));
  }
};

template <typename Router, typename Expert, std::floating_point Scalar>
struct published<moe_layer<Router, expert_union<expert_bank<Expert>, expert_bank<identity_expert<Scalar>>>>> {
  using storage = typename Expert::storage;
  static auto make(const model_config& c) {
    expert_union experts(make_published_experts<Expert>(c),
                         expert_bank<identity_expert<Scalar>>(c.zero_experts, c.inputs));
    return moe_layer(published<Router>::make(c), std::move(experts));
  }
};

template <typename Layer, typename Expert, bool Gated>
struct published<shared_expert_layer<Layer, Expert, Gated>> {
  using storage = typename Expert::storage;
  static auto make(const model_config& c) {
    return shared_expert_layer<Layer, Expert, Gated>(
        published<Layer>::make(c), Expert(c.inputs, c.shared_hidden, published_options<Expert>(c)));
  }
};

template <std::floating_point Scalar, MapStorage Storage>
struct published<gemma4_layer<Scalar, Storage>> {
  using storage = Storage;
  static auto make(const model_config& c) {
    using expert = gated_ffn<Scalar, gelu_tanh, Storage>;
    const auto norm = [&c] {
      return rms_norm<Scalar>(c.inputs, {.epsilon = static_cast<Scalar>(c.norm_epsilon), .smallest = 0});
    };
    normalized_gate gate(linear_gate<Scalar>(c.inputs, c.experts), norm(),
                         static_cast<Scalar>(1 / std::sqrt(static_cast<double>(c.inputs))));
    sigmoid_router<Scalar, dynamic, dynamic, decltype(gate)> router(
        std::move(gate), {.top_k = c.top_k,
                          .renormalize = c.renormalize,
                          .constant_weight = true,
                          .selection_bias = false,
                          .added_to_sum = 0,
                          .scores = form_of(c.family).scores,
                          .expert_scale = true});
    moe_layer mixture(std::move(router),
                      normalized_bank(expert_bank<expert>(c.experts, c.inputs, c.hidden), norm()));
    normalized_layer dense(dense_layer<expert>(expert(c.inputs, c.shared_hidden)), norm());
    return beside_layer(output_normalized_layer(std::move(mixture), norm()),
                        output_normalized_layer(std::move(dense), norm()));
  }
};

template <typename Layer>
struct published<output_bias_layer<Layer>> {
  using storage = typename published<Layer>::storage;
  static auto make(const model_config& c) { return output_bias_layer<Layer>(published<Layer>::make(c)); }
};

}  // namespace detail

/// A layer of that type with the sizes and conventions of a config, its weights at zero. Throws std::invalid_argument
/// if that block of the model is of another type.
template <typename Layer>
Layer make_published_layer(const model_config& config, const block_id& block) {
  with_published_type<typename Layer::scalar, typename detail::published<Layer>::storage>(
      config, block, [&]<typename Asked>(std::type_identity<Asked>) {
        if constexpr (!std::is_same_v<Asked, Layer>)
          throw_invalid(to_string(block), " of ", name_of(config.family), " is of another type than the one asked for");
      });
  return detail::published<Layer>::make(config);
}

}  // namespace sluice::inline SLUICE_ISA
