/// Words of the command line that stand for the library's values.
#pragma once

#include <sluice/checkpoint/published_layer.hpp>

#include <array>
#include <string>

#include "../shared/error.hpp"

namespace checkpoint {

inline sluice::data_type data_type_of(const std::string& word) {
  if (word == "float") return sluice::data_type::f32;
  if (word == "double") return sluice::data_type::f64;
  if (word == "bfloat16") return sluice::data_type::bf16;
  if (word == "float16") return sluice::data_type::f16;
  throw shared::input_error("--dtype needs float, double, bfloat16 or float16, not " + shared::in_quotes(word));
}

inline sluice::weight_type weight_type_of(const std::string& word) {
  if (word == "float") return sluice::weight_type::as_scalar;
  if (word == "bfloat16") return sluice::weight_type::bfloat16;
  if (word == "float16") return sluice::weight_type::float16;
  throw shared::input_error("--dtype needs float, bfloat16 or float16, not " + shared::in_quotes(word));
}

/// How the published models of a family weigh experts and what runs beside them, for models that are made.
struct family_habits {
  sluice::model_family family;
  bool renormalize = false;
  double scaling = 1;
  int shared = 0;  // width of what all tokens pass, in widths of an expert
};

inline constexpr auto families = std::to_array<family_habits>({
    {sluice::model_family::switch_transformers},
    {sluice::model_family::mixtral, true},
    {sluice::model_family::olmoe},
    {sluice::model_family::qwen2_moe, false, 1, 2},
    {sluice::model_family::qwen3_moe, true},
    {sluice::model_family::qwen3_next, true, 1, 1},
    {sluice::model_family::deepseek_v2, false, 1, 1},
    {sluice::model_family::deepseek_v3, true, 2.5, 1},
    {sluice::model_family::deepseek_v4, true, 1.5, 1},
    {sluice::model_family::glm4_moe, true, 2.5, 1},
    {sluice::model_family::dots1, true, 2.5, 2},
    {sluice::model_family::gemma4, true, 1, 3},
    {sluice::model_family::phimoe},
    {sluice::model_family::jetmoe, true},
    {sluice::model_family::granitemoe, true, 1, 1},
    {sluice::model_family::gpt_oss, true},
    {sluice::model_family::llama4, false, 1, 1},
    {sluice::model_family::minimax_m2, true},
    {sluice::model_family::nemotron_h, true, 2.5, 2},
    {sluice::model_family::ernie4_5_moe, true, 1, 2},
    {sluice::model_family::hunyuan_v1_moe, true, 1, 1},
    {sluice::model_family::lfm2_moe, true},
    {sluice::model_family::longcat_flash, false, 6},
    {sluice::model_family::jamba},
    {sluice::model_family::dbrx, true},
    {sluice::model_family::arctic, true},
    {sluice::model_family::megatron, true},
});

inline std::string family_list() {
  std::string list;
  for (const auto& habits : families) list += (list.empty() ? "" : ", ") + std::string(sluice::name_of(habits.family));
  return list;
}

inline const family_habits& habits_of(const std::string& word) {
  for (const auto& habits : families)
    if (sluice::name_of(habits.family) == word) return habits;
  throw shared::input_error("unknown family " + shared::in_quotes(word) + "; known are: " + family_list());
}

}  // namespace checkpoint
