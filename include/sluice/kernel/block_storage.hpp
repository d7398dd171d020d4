/// Weights as codes of 8 or 4 bits with a scale for every 32 inputs of an output: read only, for inference and frozen
/// parts.
///
///   int8_blocks   w = scale q, q = -127 .. 127;  activations in 8 bits too, a scale a row and block; sums of a block are
///                 whole numbers, by dot-product instructions
///   int4_blocks   w = scale q, q = -7 .. 7;  decoded in registers, activations and arithmetic in float
///
///   scale = bfloat16(largest |w| of the block / largest q);  q = w / scale, rounded to nearest, ties to even
///
/// Scales of eight bits make every decoded weight a float exactly, and encoding decoded weights again gives the same
/// codes and scales. A block with NaN is NaN all through; in one with infinity all that is not infinite becomes NaN. A
/// block of activations with either makes its row's sums NaN. Blocks whose largest number is below 2^-118 count as
/// zero.
///
/// Two of many: kernel/format/formats.hpp has the formats of published files, kernel/format/coded_storage.hpp what they
/// are made of.
#pragma once

#include <sluice/kernel/format/group_formats.hpp>

#include <string_view>

namespace sluice::inline SLUICE_ISA {

struct int8_format : symmetric_format<8, bfloat16, 32> {
  static constexpr std::string_view name = "int8_blocks";
};
struct int4_format : symmetric_format<4, bfloat16, 32> {
  static constexpr std::string_view name = "int4_blocks";
};
using int8_blocks = coded_storage<int8_format, arithmetic::bytes>;
using int4_blocks = coded_storage<int4_format>;

static_assert(WeightStorage<int8_blocks> && WeightStorage<int4_blocks>);

}  // namespace sluice::inline SLUICE_ISA
