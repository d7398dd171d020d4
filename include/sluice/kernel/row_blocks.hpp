/// The rows that experts work on, grouped by expert and packed for tiles: what dispatch writes.
///
///   rows of an expert are cut into blocks of equal height, at most tile_rows, the last one perhaps lower
///   a block of r rows and U steps:   step k of row i at (k / L) r L + i L + k % L      (panels of L steps, forward order)
///   block b of the expert begins at (first row + b height) ceil(U / L) L
///
/// A block is read by a tile from front to back without a gap. Steps beyond U are zero. Equal heights, 8 + 7 rather
/// than 14 + 1, because a tile of few rows waits for its weights. Columns of packed rows are read in transposed order.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/kernel/tile.hpp>

#include <algorithm>
#include <array>

namespace sluice::inline SLUICE_ISA::kernel {

/// The rows `first` .. `first + rows` of the batch, all of one expert.
class row_blocks {
public:
  row_blocks(index_t first, index_t rows) : first_(first), rows_(rows) {
    const index_t blocks = (rows + tile_rows - 1) / tile_rows;
    height_ = blocks == 0 ? 1 : (rows + blocks - 1) / blocks;
  }

  index_t first() const noexcept { return first_; }
  index_t rows() const noexcept { return rows_; }
  index_t height() const noexcept { return height_; }
  index_t count() const noexcept { return (rows_ + height_ - 1) / height_; }
  index_t begin(index_t b) const noexcept { return first_ + b * height_; }
  index_t size(index_t b) const noexcept { return (std::min)(height_, rows_ - b * height_); }

private:
  index_t first_;
  index_t rows_;
  index_t height_;
};

/// Packed rows of a batch, all experts. A view: the memory belongs to a workspace.
template <typename Storage>
struct packed_rows {
  using activation = typename Storage::activation;
  using scalar = typename Storage::scalar;
  static constexpr index_t lanes = simd_width<scalar>;

  activation* units = nullptr;
  scalar* factors = nullptr;  ///< [rows] what outputs of a row are multiplied by, if the policy scales rows
  index_t inputs = 0;
  index_t row0 = 0;  ///< the row of the batch that lies at `units`

  static index_t steps(index_t inputs) noexcept { return (inputs + Storage::group - 1) / Storage::group; }
  /// Units of a row in memory.
  static index_t pitch(index_t inputs) noexcept { return (steps(inputs) + lanes - 1) / lanes * lanes; }

  activation* block(const row_blocks& rows, index_t b) const noexcept {
    return units + (rows.begin(b) - row0) * pitch(inputs);
  }
  /// L steps of one row of a block of `size` rows.
  activation* panel(const row_blocks& rows, index_t b, index_t row, index_t p) const noexcept {
    return block(rows, b) + (p * rows.size(b) + row) * lanes;
  }
};

namespace detail {

template <typename Storage>
inline constexpr bool scales_rows = requires(const typename Storage::scalar* x) {
  Storage::row_scale(x, index_t(1));
};

/// One panel of one row: units of the inputs from `begin` on, zero past the last.
template <typename Storage>
void pack_panel(const typename Storage::scalar* x, index_t begin, index_t inputs, typename Storage::scalar factor,
                typename Storage::activation* out) noexcept {
  using scalar = typename Storage::scalar;
  constexpr index_t lanes = simd_width<scalar>;
  if constexpr (std::same_as<typename Storage::activation, scalar>) {
    if (begin + lanes <= inputs) {
      store<scalar>(out, simd<scalar>(factor) * load(x + begin));
      return;
    }
  }
  for (index_t u = 0; u < lanes; ++u) {
    scalar group[Storage::group] = {};
    const index_t from = begin + u * Storage::group;
    for (index_t g = 0; g < Storage::group && from + g < inputs; ++g) group[g] = x[from + g];
    out[u] = Storage::pack(group, factor);
  }
}

}  // namespace detail

/// Packs block b of an expert: row_of(i) points to the inputs of row i of the batch, scale_of(i) is their factor.
template <typename Storage, typename RowOf, typename ScaleOf>
void pack_block(const packed_rows<Storage>& to, const row_blocks& rows, index_t b, RowOf&& row_of, ScaleOf&& scale_of) {
  using scalar = typename Storage::scalar;
  const index_t size = rows.size(b);
  std::array<const scalar*, tile_rows> from;
  std::array<scalar, tile_rows> factor;
  for (index_t i = 0; i < size; ++i) {
    const auto r = static_cast<std::size_t>(i);
    from[r] = row_of(rows.begin(b) + i);
    factor[r] = scale_of(rows.begin(b) + i);
    if constexpr (detail::scales_rows<Storage>) {
      const scalar scale = Storage::row_scale(from[r], to.inputs);
      to.factors[rows.begin(b) + i - to.row0] = scale * factor[r];
      factor[r] = scale == scalar(0) ? scalar(0) : 1 / scale;
    }
  }
  constexpr index_t panel_inputs = packed_rows<Storage>::lanes * Storage::group;
  const index_t panels = packed_rows<Storage>::pitch(to.inputs) / packed_rows<Storage>::lanes;
  for (index_t p = 0; p < panels; ++p)
    for (index_t i = 0; i < size; ++i)
      detail::pack_panel<Storage>(from[static_cast<std::size_t>(i)], p * panel_inputs, to.inputs,
                                  factor[static_cast<std::size_t>(i)], to.panel(rows, b, i, p));
}

}  // namespace sluice::inline SLUICE_ISA::kernel
