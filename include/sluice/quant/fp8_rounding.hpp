/// round_to_fp8: weights to float8 e4m3 with a scale a tile, as DeepSeek-V3 and others are released.
///
///   s(tile) = max |w| / 448      code(o, i) = the nearest e4m3 number to w(o, i) / s      w' = e4m3(code) s
///
/// W [out,in], tiles of 128 x 128 unless told otherwise, partial at the edges. Scale and quotient are rounded to float,
/// and the quotient to e4m3 with ties to the even code; a zero keeps its sign. A tile of zeros has the scale 1. Throws
/// std::invalid_argument for weights that are not finite. DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", section
/// 3.3.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/core/types.hpp>
#include <sluice/kernel/format/grouped_codes.hpp>
#include <sluice/quant/round_to_nearest.hpp>

#include <algorithm>
#include <cstdint>

namespace sluice::inline SLUICE_ISA {

struct fp8_rounding_options {
  index_t tile_outputs = 128;
  index_t tile_inputs = 128;
  executor_ref executor = {};
};

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
          out.codes(first + o, g * tile_cols + i) = round_to_e4m3(tile(o, i) / scale);
      }
    }
  });
  return out;
}

}  // namespace sluice::inline SLUICE_ISA
