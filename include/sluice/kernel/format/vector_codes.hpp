/// A weight matrix whose vectors of weights are entries of codebooks, as quantisers produce it and files hold it: plain
/// data, from which storages are packed.
///
///   W [out,in] is cut into tiles [tile_outputs, tile_inputs], A x B of them, the last ones padded. A tile is a vector:
///   1 x 8 runs along the inputs (GPTVQ, AQLM), 8 x 1 along the outputs (VPTQ). With M stages,
///
///     W(o, i) = scale(o, i) (c_1(o, i) + c_2(o, i) + .. + c_M(o, i)),   c_m = entry `indices[m](tile)` of a codebook
///
///   from left to right in float, and then the scale, rounded as float rounds. Codebooks belong to regions of
///   region_outputs x region_inputs weights, whole tiles; 0 stands for the whole matrix:
///   codebooks[region M + m] is [K_m, tile_outputs tile_inputs], an entry a row, of a tile row by row. Regions are
///   counted along the inputs first. scales [out, ceil(in / scale_inputs)], or [0,0] for none; scale_inputs = 0: a row.
///
/// Empty matrices are fine. Entries and scales may be anything, NaN and infinity too.
/// Papers: Egiazarian et al. 2024 (AQLM), Malinovskii et al. 2024 (PV-Tuning), van Baalen et al. 2024 (GPTVQ),
/// Liu et al. 2024 (VPTQ).
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/types.hpp>

#include <cstdint>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct vector_codes {
  index_t outputs = 0;
  index_t inputs = 0;
  index_t tile_outputs = 1;
  index_t tile_inputs = 1;
  index_t region_outputs = 0;  ///< whose weights share codebooks; 0: all outputs
  index_t region_inputs = 0;   ///< 0: all inputs
  index_t scale_inputs = 0;    ///< inputs of a row that share a scale; 0: all

  std::vector<matrix<float>> codebooks = {};        ///< [regions M] of [K_m, tile_outputs tile_inputs]
  std::vector<matrix<std::uint16_t>> indices = {};  ///< [M] of [A,B]
  matrix<float> scales = {};                        ///< [out, scale groups] or [0,0]

  index_t stages() const noexcept { return static_cast<index_t>(indices.size()); }
  index_t tile_rows() const noexcept { return pieces(outputs, tile_outputs); }
  index_t tile_cols() const noexcept { return pieces(inputs, tile_inputs); }
  index_t region_cols() const noexcept { return region_inputs == 0 ? 1 : pieces(inputs, region_inputs); }
  index_t regions() const noexcept {
    return region_cols() * (region_outputs == 0 ? 1 : pieces(outputs, region_outputs));
  }
  index_t scale_groups() const noexcept { return scale_inputs == 0 ? 1 : pieces(inputs, scale_inputs); }

  /// The region of tile (a, b).
  index_t region(index_t a, index_t b) const noexcept {
    const index_t row = region_outputs == 0 ? 0 : a * tile_outputs / region_outputs;
    return row * region_cols() + (region_inputs == 0 ? 0 : b * tile_inputs / region_inputs);
  }
  const matrix<float>& codebook(index_t region, index_t stage) const noexcept {
    return codebooks[as_size(region * stages() + stage)];
  }
  matrix<float>& codebook(index_t region, index_t stage) noexcept {
    return codebooks[as_size(region * stages() + stage)];
  }
  float scale(index_t output, index_t input) const noexcept {
    if (scales.size() == 0) return 1.0F;
    return scales(output, scale_inputs == 0 ? 0 : input / scale_inputs);
  }
  /// The weight without its scale.
  float entry(index_t output, index_t input) const noexcept {
    const index_t a = output / tile_outputs, b = input / tile_inputs, r = region(a, b);
    const index_t place = output % tile_outputs * tile_inputs + input % tile_inputs;
    float sum = codebook(r, 0)(indices[0](a, b), place);
    for (index_t m = 1; m < stages(); ++m) sum += codebook(r, m)(indices[as_size(m)](a, b), place);
    return sum;
  }
  float value(index_t output, index_t input) const noexcept {
    return scales.size() == 0 ? entry(output, input) : scale(output, input) * entry(output, input);
  }
  matrix<float> to_matrix() const {
    matrix<float> m(outputs, inputs);
    for (index_t o = 0; o < outputs; ++o)
      for (index_t i = 0; i < inputs; ++i) m(o, i) = value(o, i);
    return m;
  }

  /// Throws std::invalid_argument unless sizes fit together and every index is an entry of its codebook.
  void validate() const {
    if (outputs < 0 || inputs < 0 || tile_outputs < 1 || tile_inputs < 1 || stages() < 1)
      throw_invalid("vector codes need sizes of 0 or more, tiles of 1 or more weights and an index a tile, not [",
                    outputs, ", ", inputs, "] in tiles [", tile_outputs, ", ", tile_inputs, "] with ", stages(),
                    " indices");
    if (region_outputs < 0 || region_outputs % tile_outputs != 0 || region_inputs < 0 ||
        region_inputs % tile_inputs != 0)
      throw_invalid("regions [", region_outputs, ", ", region_inputs, "] are not made of whole tiles [", tile_outputs,
                    ", ", tile_inputs, "]");
    if (static_cast<index_t>(codebooks.size()) != regions() * stages())
      throw_invalid("there are ", codebooks.size(), " codebooks for ", regions(), " regions of ", stages(), " stages");
    for (const matrix<float>& codes : codebooks)
      if (codes.cols() != tile_outputs * tile_inputs)
        throw_invalid("a codebook [", codes.rows(), ", ", codes.cols(), "] has no entries of [", tile_outputs, ", ",
                      tile_inputs, "] weights");
    if (scales.size() != 0 || scale_inputs != 0) check_scales();
    for (index_t m = 0; m < stages(); ++m) check_indices(m);
  }

private:
  static constexpr index_t pieces(index_t length, index_t piece) noexcept { return (length + piece - 1) / piece; }

  void check_scales() const {
    if (scale_inputs < 0) throw_invalid("a scale for ", scale_inputs, " inputs");
    if (scales.rows() != outputs || scales.cols() != scale_groups())
      throw_invalid("scales are [", scales.rows(), ", ", scales.cols(), "] where a matrix [", outputs, ", ", inputs,
                    "] with ", scale_groups(), " groups has its own");
  }
  void check_indices(index_t m) const {
    const matrix<std::uint16_t>& of = indices[as_size(m)];
    if (of.rows() != tile_rows() || of.cols() != tile_cols())
      throw_invalid("indices [", of.rows(), ", ", of.cols(), "] of a matrix of [", tile_rows(), ", ", tile_cols(),
                    "] tiles");
    for (index_t a = 0; a < of.rows(); ++a)
      for (index_t b = 0; b < of.cols(); ++b)
        if (of(a, b) >= codebook(region(a, b), m).rows())
          throw_invalid("tile (", a, ", ", b, ") has the index ", of(a, b), " into ", codebook(region(a, b), m).rows(),
                        " entries");
  }
};

}  // namespace sluice::inline SLUICE_ISA
