/// family_forms: what a mixture of each published family is made of, a row a family.
///
/// A form is one layer type of published_types.hpp. What a family does in the same way in all its models stands here;
/// what its models differ in is in their config (model_family.hpp).
#pragma once

#include <sluice/checkpoint/model_family.hpp>
#include <sluice/router/tokens_choose/sigmoid_top_k.hpp>

#include <array>

namespace sluice::inline SLUICE_ISA {

namespace detail {

enum class layer_form {
  top_k,           ///< softmax over the experts, SwiGLU
  top_k_biased,    ///< and a bias added to the sum of experts
  scored,          ///< scores that stand on their own, beside which a bias may choose; SwiGLU
  sparse_mixer,    ///< SparseMixer, SwiGLU
  clamped,         ///< softmax, clamped gated experts with biases
  first_come,      ///< softmax, one expert, a fixed capacity served by position; ReLU
  most_likely,     ///< softmax, capacity by probability; SwiGLU
  ungated,         ///< as scored, experts and shared expert without a gate: squared ReLU
  with_copies,     ///< as scored, beside the experts some that return their input
  scored_clamped,  ///< as scored, hidden units clamped
  normed_branches  ///< a mixture beside a dense branch, each between norms of its own; GeGLU
};

enum class shared_form { none, plain, gated };

struct family_form {
  model_family family;
  layer_form form;
  shared_form shared = shared_form::none;  // where the config gives it a width
  bool softmax_over_chosen = false;
  bool selection_bias = false;
  expert_scores scores = expert_scores::sigmoid;  // of forms that are scored
  bool weighs_inputs = false;  // weights multiply what experts read
  double smallest_sum = 0;     // renormalised weights are divided by max(sum, this) + added_to_sum
  double added_to_sum = 0;
};

inline constexpr auto family_forms = std::to_array<family_form>({
    {.family = model_family::switch_transformers, .form = layer_form::first_come},
    {.family = model_family::mixtral, .form = layer_form::top_k},
    {.family = model_family::olmoe, .form = layer_form::top_k},
    {.family = model_family::qwen2_moe, .form = layer_form::top_k, .shared = shared_form::gated},
    {.family = model_family::qwen3_moe, .form = layer_form::top_k},
    {.family = model_family::deepseek_v2,
     .form = layer_form::top_k,
     .shared = shared_form::plain,
     .added_to_sum = 1e-20},
    {.family = model_family::deepseek_v3,
     .form = layer_form::scored,
     .shared = shared_form::plain,
     .selection_bias = true,
     .added_to_sum = 1e-20},
    {.family = model_family::phimoe, .form = layer_form::sparse_mixer},
    {.family = model_family::jetmoe, .form = layer_form::top_k_biased, .softmax_over_chosen = true},
    {.family = model_family::gpt_oss, .form = layer_form::clamped, .softmax_over_chosen = true},
    {.family = model_family::llama4,
     .form = layer_form::scored,
     .shared = shared_form::plain,
     .weighs_inputs = true},
    {.family = model_family::megatron, .form = layer_form::most_likely},
    {.family = model_family::qwen3_next, .form = layer_form::top_k, .shared = shared_form::gated},
    {.family = model_family::glm4_moe,
     .form = layer_form::scored,
     .shared = shared_form::plain,
     .selection_bias = true,
     .added_to_sum = 1e-20},
    {.family = model_family::dots1,
     .form = layer_form::scored,
     .shared = shared_form::plain,
     .selection_bias = true,
     .added_to_sum = 1e-20},
    {.family = model_family::minimax_m2, .form = layer_form::scored, .selection_bias = true},
    {.family = model_family::lfm2_moe, .form = layer_form::scored, .selection_bias = true, .added_to_sum = 1e-6},
    {.family = model_family::granitemoe,
     .form = layer_form::top_k,
     .shared = shared_form::plain,
     .softmax_over_chosen = true},
    {.family = model_family::hunyuan_v1_moe,
     .form = layer_form::top_k,
     .shared = shared_form::plain,
     .smallest_sum = 1.1920928955078125e-7},
    {.family = model_family::jamba, .form = layer_form::top_k},
    {.family = model_family::dbrx, .form = layer_form::top_k},
    {.family = model_family::arctic, .form = layer_form::top_k},
    {.family = model_family::nemotron_h,
     .form = layer_form::ungated,
     .shared = shared_form::plain,
     .selection_bias = true,
     .added_to_sum = 1e-20},
    {.family = model_family::ernie4_5_moe,
     .form = layer_form::scored,
     .shared = shared_form::plain,
     .selection_bias = true,
     .scores = expert_scores::softmax},
    {.family = model_family::longcat_flash,
     .form = layer_form::with_copies,
     .selection_bias = true,
     .scores = expert_scores::softmax},
    {.family = model_family::deepseek_v4,
     .form = layer_form::scored_clamped,
     .shared = shared_form::plain,
     .selection_bias = true,
     .scores = expert_scores::sqrt_softplus,
     .added_to_sum = 1e-20},
    {.family = model_family::gemma4, .form = layer_form::normed_branches, .scores = expert_scores::softmax},
});

constexpr const family_form& form_of(model_family family) {
  for (const family_form& form : family_forms)
    if (form.family == family) return form;
  return family_forms.front();
}

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
