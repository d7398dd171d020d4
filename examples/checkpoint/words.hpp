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

inline constexpr std::array families{sluice::model_family::switch_transformers,
                                     sluice::model_family::mixtral,
                                     sluice::model_family::olmoe,
                                     sluice::model_family::qwen2_moe,
                                     sluice::model_family::qwen3_moe,
                                     sluice::model_family::deepseek_v2,
                                     sluice::model_family::deepseek_v3,
                                     sluice::model_family::phimoe,
                                     sluice::model_family::jetmoe,
                                     sluice::model_family::gpt_oss,
                                     sluice::model_family::llama4,
                                     sluice::model_family::megatron};

inline std::string family_list() {
  std::string list;
  for (const auto family : families) list += (list.empty() ? "" : ", ") + std::string(sluice::name_of(family));
  return list;
}

inline sluice::model_family family_of(const std::string& word) {
  for (const auto family : families)
    if (sluice::name_of(family) == word) return family;
  throw shared::input_error("unknown family " + shared::in_quotes(word) + "; known are: " + family_list());
}

}  // namespace checkpoint
