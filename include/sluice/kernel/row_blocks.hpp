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

/// Some of an expert's blocks.
struct block_range {
  index_t begin;
  index_t end;
};

/// Packed rows of a batch, all experts, as a storage's tiles read them. A view: the memory belongs to a workspace.
template <TileStorage Storage>
struct rows_for_tiles {
  using activation = typename Storage::activation;
  using scalar = typename Storage::scalar;
  using factor = sluice::detail::factor_of<Storage>;
  static constexpr index_t lanes = simd_width<scalar>;

  activation* units = nullptr;
  factor* factors = nullptr;  ///< of a storage with partial sums: [blocks][rows] of every block of rows
  index_t inputs = 0;
  index_t row0 = 0;  ///< the row of the batch that lies at `units`

  /// Steps that this many inputs take: whole blocks, if sums are partial before.
  static index_t steps(index_t inputs) noexcept {
    const index_t some = (inputs + Storage::group - 1) / Storage::group;
    return SumsInBlocks<Storage> ? blocks(inputs) * Storage::block : some;
  }
  static index_t blocks(index_t inputs) noexcept {
    constexpr index_t block = sluice::detail::block_inputs<Storage>();
    return (inputs + block - 1) / block;
  }
  /// Units of a row in memory.
  static index_t pitch(index_t inputs) noexcept { return (steps(inputs) + lanes - 1) / lanes * lanes; }
  /// Factors of a row.
  static index_t row_factors(index_t inputs) noexcept { return SumsInBlocks<Storage> ? blocks(inputs) : 0; }

  activation* block(const row_blocks& rows, index_t b) const noexcept {
    return units + (rows.begin(b) - row0) * pitch(inputs);
  }
  /// L steps of one row of a block of `size` rows.
  activation* panel(const row_blocks& rows, index_t b, index_t row, index_t p) const noexcept {
    return block(rows, b) + (p * rows.size(b) + row) * lanes;
  }
  factor* factors_of(const row_blocks& rows, index_t b) const noexcept {
    return factors + (rows.begin(b) - row0) * row_factors(inputs);
  }
};

/// Storages whose tiles have one packing read the same rows.
template <typename Storage>
using packed_rows = rows_for_tiles<sluice::detail::packing_of<Storage>>;

namespace detail {

/// One panel of one row: units of the inputs from `begin` on, zero past the last.
template <typename Storage>
void pack_panel(const Storage& storage, const typename Storage::scalar* x, index_t begin, index_t inputs,
                typename Storage::scalar factor, typename Storage::activation* out) noexcept {
  using scalar = typename Storage::scalar;
  constexpr index_t lanes = simd_width<scalar>;
  if constexpr (sluice::detail::packs_numbers<Storage>) {
    if (begin + lanes <= inputs) {
      store<scalar>(out, simd<scalar>(factor) * load(x + begin));
      return;
    }
  }
  for (index_t u = 0; u < lanes; ++u) {
    scalar group[as_size(Storage::group)] = {};
    const index_t from = begin + u * Storage::group;
    for (index_t g = 0; g < Storage::group && from + g < inputs; ++g) group[g] = x[from + g];
    out[u] = storage.pack(group, factor);
  }
}

/// One row in blocks with factors.
template <typename Storage>
void pack_row(const Storage& storage, const packed_rows<Storage>& to, const row_blocks& rows, index_t b, index_t row,
              const typename Storage::scalar* x, typename Storage::scalar factor) noexcept {
  using scalar = typename Storage::scalar;
  constexpr index_t lanes = simd_width<scalar>, block_inputs = sluice::detail::block_inputs<Storage>();
  constexpr index_t together = (std::min)(lanes, Storage::block);  // units that lie side by side
  static_assert(lanes % together == 0 && Storage::block % together == 0);
  scalar last[as_size(block_inputs)];
  typename Storage::activation units[as_size(Storage::block)];
  for (index_t k = 0; k < packed_rows<Storage>::blocks(to.inputs); ++k) {
    const scalar* from = x + k * block_inputs;
    if (const index_t count = to.inputs - k * block_inputs; count < block_inputs) {
      std::fill(std::copy_n(from, count, last), last + block_inputs, scalar(0));
      from = last;
    }
    to.factors_of(rows, b)[k * rows.size(b) + row] = storage.pack_block(from, factor, units);
    for (index_t u = 0; u < Storage::block; u += together) {
      const index_t step = k * Storage::block + u;
      std::copy_n(units + u, together, to.panel(rows, b, row, step / lanes) + step % lanes);
    }
  }
}

}  // namespace detail

/// Packs block b of an expert: row_of(i) points to the inputs of row i of the batch, scale_of(i) is their factor.
template <typename Storage, typename RowOf, typename ScaleOf>
void pack_block(const Storage& of_map, const packed_rows<Storage>& to, const row_blocks& rows, index_t b,
                RowOf&& row_of, ScaleOf&& scale_of) {
  using scalar = typename Storage::scalar;
  using tiles = sluice::detail::packing_of<Storage>;
  const auto& storage = sluice::detail::tiles_object<tiles>(of_map);
  const index_t size = rows.size(b);
  if constexpr (SumsInBlocks<Storage>) {
    for (index_t i = 0; i < size; ++i)
      detail::pack_row<tiles>(storage, to, rows, b, i, row_of(rows.begin(b) + i), scale_of(rows.begin(b) + i));
  } else {
    std::array<const scalar*, tile_rows> from;
    std::array<scalar, tile_rows> factor;
    for (index_t i = 0; i < size; ++i) {
      from[as_size(i)] = row_of(rows.begin(b) + i);
      factor[as_size(i)] = scale_of(rows.begin(b) + i);
    }
    constexpr index_t panel_inputs = packed_rows<Storage>::lanes * tiles::group;
    const index_t panels = packed_rows<Storage>::pitch(to.inputs) / packed_rows<Storage>::lanes;
    for (index_t p = 0; p < panels; ++p)
      for (index_t i = 0; i < size; ++i)
        detail::pack_panel<tiles>(storage, from[as_size(i)], p * panel_inputs, to.inputs, factor[as_size(i)],
                                  to.panel(rows, b, i, p));
  }
}

}  // namespace sluice::inline SLUICE_ISA::kernel
