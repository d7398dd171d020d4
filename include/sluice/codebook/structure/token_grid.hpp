/// Tokens that are images of height x width, row by row, one after another, and the cells of s x s tokens that they are
/// cut into; cells at a border may be smaller.
#pragma once

#include <sluice/codebook/quantizer.hpp>
#include <sluice/core/buffer.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <cstdint>

namespace sluice::inline SLUICE_ISA {

struct token_grid {
  index_t height = 1;
  index_t width = 1;

  /// How many cells of side s an image has.
  index_t cells(index_t s) const noexcept { return ((height + s - 1) / s) * ((width + s - 1) / s); }
  /// The cell of a token, counted over all images.
  index_t cell(index_t token, index_t s) const noexcept {
    const index_t image = token / (height * width), row = token / width % height, column = token % width;
    return image * cells(s) + row / s * ((width + s - 1) / s) + column / s;
  }
};

namespace detail {

/// One level of a pyramid: means of cells, what they were quantised to, and which tokens they were made of.
template <typename Scalar>
struct grid_level {
  matrix_buffer<Scalar> means, quantized;
  matrix_buffer<index_t> ids;
  buffer<index_t> count;      ///< tokens of a cell that are seen
  buffer<std::uint8_t> seen;  ///< cells that have any

  /// The means of cells of side s over tokens that are seen; room for what they will be quantised to.
  void pool(const token_grid& grid, index_t s, const matrix_buffer<Scalar>& tokens, const std::uint8_t* token_is_seen,
            index_t code_columns) {
    const index_t width = tokens.cols(), cells = tokens.rows() / (grid.height * grid.width) * grid.cells(s);
    means.set_zero(cells, width);
    quantized.resize(cells, width);
    ids.resize(cells, code_columns);
    count.assign(cells, 0);
    seen.resize(cells);
    for (index_t t = 0; t < tokens.rows(); ++t) {
      if (!token_is_seen[t]) continue;
      const index_t c = grid.cell(t, s);
      kernel::add_scaled(Scalar(1), tokens.row(t), means.row(c), width);
      ++count[c];
    }
    for (index_t c = 0; c < cells; ++c) {
      seen[c] = count[c] > 0;
      if (seen[c]) kernel::copy_scaled(1 / static_cast<Scalar>(count[c]), means.row(c), means.row(c), width);
    }
  }

  /// The ids of tokens, those of their cells; what the cells were quantised to is taken from tokens and added to sum.
  void take_away(const token_grid& grid, index_t s, const std::uint8_t* token_is_seen, tokens_out<index_t> token_ids,
                 matrix_buffer<Scalar>& tokens, matrix_buffer<Scalar>* sum) const {
    for (index_t t = 0; t < tokens.rows(); ++t) {
      if (!token_is_seen[t]) continue;
      const index_t c = grid.cell(t, s);
      for (index_t m = 0; m < ids.cols(); ++m) token_ids(t, m) = ids(c, m);
      if (ids(c, 0) == no_code) continue;
      kernel::add_scaled(Scalar(-1), quantized.row(c), tokens.row(t), tokens.cols());
      if (sum != nullptr) kernel::add_scaled(Scalar(1), quantized.row(c), sum->row(t), tokens.cols());
    }
  }
};

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
