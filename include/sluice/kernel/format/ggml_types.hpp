/// ggml's types of tensors, by the numbers that GGUF files say: how many inputs a block has and how many bytes it
/// takes.
///
/// A row is whole blocks, and rows follow each other without padding.
#pragma once

#include <sluice/core/types.hpp>

#include <array>
#include <cstdint>
#include <string_view>

namespace sluice::inline SLUICE_ISA {

enum class ggml_type : std::uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q2_k = 10,
  q3_k = 11,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  iq2_xxs = 16,
  iq2_xs = 17,
  iq3_xxs = 18,
  iq1_s = 19,
  iq4_nl = 20,
  iq3_s = 21,
  iq2_s = 22,
  iq4_xs = 23,
  i8 = 24,
  i16 = 25,
  i32 = 26,
  i64 = 27,
  f64 = 28,
  iq1_m = 29,
  bf16 = 30,
  tq1_0 = 34,
  tq2_0 = 35,
  mxfp4 = 39,
  nvfp4 = 40
};

struct ggml_type_traits {
  ggml_type type;
  std::string_view name;  ///< as ggml spells it
  index_t inputs;         ///< of a block
  index_t bytes;          ///< of a block
};

inline constexpr std::array<ggml_type_traits, 31> ggml_types{{
    {ggml_type::f32, "f32", 1, 4},
    {ggml_type::f16, "f16", 1, 2},
    {ggml_type::q4_0, "q4_0", 32, 18},
    {ggml_type::q4_1, "q4_1", 32, 20},
    {ggml_type::q5_0, "q5_0", 32, 22},
    {ggml_type::q5_1, "q5_1", 32, 24},
    {ggml_type::q8_0, "q8_0", 32, 34},
    {ggml_type::q2_k, "q2_K", 256, 84},
    {ggml_type::q3_k, "q3_K", 256, 110},
    {ggml_type::q4_k, "q4_K", 256, 144},
    {ggml_type::q5_k, "q5_K", 256, 176},
    {ggml_type::q6_k, "q6_K", 256, 210},
    {ggml_type::iq2_xxs, "iq2_xxs", 256, 66},
    {ggml_type::iq2_xs, "iq2_xs", 256, 74},
    {ggml_type::iq3_xxs, "iq3_xxs", 256, 98},
    {ggml_type::iq1_s, "iq1_s", 256, 50},
    {ggml_type::iq4_nl, "iq4_nl", 32, 18},
    {ggml_type::iq3_s, "iq3_s", 256, 110},
    {ggml_type::iq2_s, "iq2_s", 256, 82},
    {ggml_type::iq4_xs, "iq4_xs", 256, 136},
    {ggml_type::i8, "i8", 1, 1},
    {ggml_type::i16, "i16", 1, 2},
    {ggml_type::i32, "i32", 1, 4},
    {ggml_type::i64, "i64", 1, 8},
    {ggml_type::f64, "f64", 1, 8},
    {ggml_type::iq1_m, "iq1_m", 256, 56},
    {ggml_type::bf16, "bf16", 1, 2},
    {ggml_type::tq1_0, "tq1_0", 256, 54},
    {ggml_type::tq2_0, "tq2_0", 256, 66},
    {ggml_type::mxfp4, "mxfp4", 32, 17},
    {ggml_type::nvfp4, "nvfp4", 64, 36},
}};

/// The row of the table with this number, or null: types that are no longer in use, and those that nobody has met.
constexpr const ggml_type_traits* find_ggml_type(std::uint32_t number) noexcept {
  for (const ggml_type_traits& traits : ggml_types)
    if (static_cast<std::uint32_t>(traits.type) == number) return &traits;
  return nullptr;
}

}  // namespace sluice::inline SLUICE_ISA
