/// round_to_fp8: weights to float8 e4m3 with a scale a tile, as DeepSeek-V3 and others are released.
///
///   s(tile) = max |w| / 448      code(o, i) = the nearest e4m3 number to w(o, i) / s      w' = e4m3(code) s
///
/// W [out,in], tiles of 128 x 128 unless told otherwise, partial at the edges. Scale and quotient are rounded to float,
/// and the quotient to e4m3 with ties to the even code; a zero keeps its sign. A tile of zeros has the scale 1. Throws
/// std::invalid_argument for weights that are not finite. DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", section 3.3.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/core/types.hpp>
#include <sluice/kernel/format/grouped_codes.hpp>
#include <sluice/quant/round_to_nearest.hpp>

#include <algorithm>
#include <bit>
#include <cstdint>

namespace sluice::inline SLUICE_ISA {

struct fp8_rounding_options {
  index_t tile_outputs = 128;
  index_t tile_inputs = 128;
  executor_ref executor = {};
};

namespace detail {

/// The code of the nearest e4m3 number, ties to the even code; beyond 448 the largest. On bits, for a finite value.
constexpr std::uint8_t nearest_e4m3(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint8_t>(bits >> 24U & 0x80U);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
  const std::uint32_t exponent = magnitude >> 23U;
  if (exponent < 116U) return sign;  // below 2^-11: under half of the smallest, 2^-9
  const std::uint32_t significand = (magnitude & 0x7FFFFFU) | 0x800000U;
  // Normal from 2^-6 on. What falls off the right of three fraction bits decides; a carry goes to the next exponent.
  const std::uint32_t shift = exponent >= 121U ? 20U : 141U - exponent;
  const std::uint32_t kept = significand >> shift, lost = significand & ((1U << shift) - 1U), tie = 1U << (shift - 1U);
  const std::uint32_t up = lost > tie || (lost == tie && (kept & 1U) != 0) ? 1U : 0U;
  const std::uint32_t code = exponent >= 121U ? ((exponent - 121U) << 3U) + kept + up : kept + up;
  return static_cast<std::uint8_t>(sign | (std::min)(code, 0x7EU));
}
static_assert(nearest_e4m3(448) == 0x7E && nearest_e4m3(-1) == 0xB8 && nearest_e4m3(0x1p-9F) == 1);
static_assert(nearest_e4m3(0x1p-10F) == 0 && nearest_e4m3(0x1.8p-9F) == 2 && nearest_e4m3(0x1p-6F) == 8);

}  // namespace detail

/// The scales of rows in one tile are equal: row o of scales is that of tile o / tile_outputs.
inline grouped_codes round_to_fp8(tokens_in<float> w, const fp8_rounding_options& options = {}) {
  const auto [rows, cols, executor] = options;
  if (rows < 1 || cols < 1) throw_invalid("tiles of ", rows, " x ", cols, " weights");
  detail::check_finite_weights(w, executor);
  grouped_codes out;
  out.codes.resize(w.rows(), w.cols());
  out.group = cols;
  out.meaning = code_meaning::e4m3;
  const index_t across = (w.cols() + cols - 1) / cols;
  out.scales.resize(w.rows(), across);
  executor.parallel_for((w.rows() + rows - 1) / rows, [&, tile_rows = rows, tile_cols = cols](index_t strip) {
    const index_t first = strip * tile_rows, count = (std::min)(tile_rows, w.rows() - first);
    for (index_t g = 0; g < across; ++g) {
      const auto tile = w.block(first, g * tile_cols, count, (std::min)(tile_cols, w.cols() - g * tile_cols));
      const float most = tile.size() == 0 ? 0.0F : tile.cwiseAbs().maxCoeff();
      const float scale = most > 0 ? most / 448.0F : 1.0F;
      for (index_t o = 0; o < count; ++o) {
        out.scales(first + o, g) = scale;
        for (index_t i = 0; i < tile.cols(); ++i)
          out.codes(first + o, g * tile_cols + i) = detail::nearest_e4m3(tile(o, i) / scale);
      }
    }
  });
  return out;
}

}  // namespace sluice::inline SLUICE_ISA
