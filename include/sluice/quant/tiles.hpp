/// A matrix as rows of tiles: what codes stand for, laid out for searches and means.
///
///   w [out,in] in tiles [tile_outputs, tile_inputs], A x B of them, counted along the inputs first
///   rows [A B, tile_outputs tile_inputs], a tile row by row, as entries of vector_codes
///     (kernel/format/vector_codes.hpp)
///
/// Tiles at the far edges are padded with zeros, which leave when rows become a matrix again.
#pragma once

#include <sluice/kernel/format/vector_codes.hpp>

#include <algorithm>

namespace sluice::inline SLUICE_ISA {

/// How a matrix is cut.
struct tile_shape {
  index_t outputs = 1;
  index_t inputs = 1;

  static tile_shape of(const vector_codes& codes) noexcept { return {codes.tile_outputs, codes.tile_inputs}; }
  index_t size() const noexcept { return outputs * inputs; }
  index_t count(index_t rows, index_t cols) const noexcept {
    return ((rows + outputs - 1) / outputs) * ((cols + inputs - 1) / inputs);
  }
};

namespace detail {

inline void check_tile(tile_shape tile) {
  if (tile.outputs < 1 || tile.inputs < 1) throw_invalid("a tile of [", tile.outputs, ", ", tile.inputs, "] weights");
}

/// f(o, i, tile, place) for every weight of a matrix.
template <typename F>
void for_each_weight(index_t outputs, index_t inputs, tile_shape tile, F&& f) {
  const index_t across = (inputs + tile.inputs - 1) / tile.inputs;
  for (index_t o = 0; o < outputs; ++o)
    for (index_t i = 0; i < inputs; ++i)
      f(o, i, o / tile.outputs * across + i / tile.inputs, o % tile.outputs * tile.inputs + i % tile.inputs);
}

}  // namespace detail

/// Throws std::invalid_argument unless a tile has a weight.
template <FloatOrDouble Scalar>
matrix<Scalar> to_tiles(tokens_in<Scalar> w, tile_shape tile) {
  detail::check_tile(tile);
  matrix<Scalar> rows = matrix<Scalar>::Zero(tile.count(w.rows(), w.cols()), tile.size());
  detail::for_each_weight(w.rows(), w.cols(), tile,
                          [&](index_t o, index_t i, index_t t, index_t place) { rows(t, place) = w(o, i); });
  return rows;
}

/// Throws std::invalid_argument if rows are not the tiles of such a matrix.
template <FloatOrDouble Scalar>
matrix<Scalar> from_tiles(tokens_in<Scalar> rows, index_t outputs, index_t inputs, tile_shape tile) {
  detail::check_tile(tile);
  if (rows.rows() != tile.count(outputs, inputs) || rows.cols() != tile.size())
    throw_invalid("rows [", rows.rows(), ", ", rows.cols(), "] are not the ", tile.count(outputs, inputs), " tiles [",
                  tile.outputs, ", ", tile.inputs, "] of a matrix [", outputs, ", ", inputs, "]");
  matrix<Scalar> w(outputs, inputs);
  detail::for_each_weight(outputs, inputs, tile,
                          [&](index_t o, index_t i, index_t t, index_t place) { w(o, i) = rows(t, place); });
  return w;
}

}  // namespace sluice::inline SLUICE_ISA
