/// Vector codes of a matrix from its weights alone: k-means of its tiles, stage after stage of what is left.
///
///   s(o) = the root of the mean square of row o, or 1 where that is zero or no scales are wanted
///   stage m: entries = k-means of the tiles of w / s minus the entries of the stages before, weighted by s^2 where a
///     tile has one row; indices = the nearest
///
/// Where AQLM and PV-Tuning begin, and what vector quantisation without calibration is (one stage, no scales). Fewer
/// tiles than codes leave entries twice; equal distances, the lowest. Tiles at the edges are padded with zeros. Weights
/// that are not finite are refused. Empty matrices give zero entries and empty indices. Equal bits for any thread
/// count. Chen, Guan, Wang 2010; Egiazarian et al. 2024 (AQLM), arXiv:2401.06118.
#pragma once

#include <sluice/codebook/kmeans.hpp>
#include <sluice/quant/round_to_nearest.hpp>
#include <sluice/quant/tiles.hpp>

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct residual_code_options {
  tile_shape tile = {1, 8};
  index_t stages = 1;
  index_t codes = 256;  ///< of a stage, at most 65536
  bool scales = false;  ///< one a row
  index_t rounds = 25;  ///< of k-means
  random_source random = {};
};

/// Throws std::invalid_argument unless there are stages, tiles of a weight or more, 1 to 65536 codes and rounds >= 0,
/// and every weight is finite.
inline vector_codes residual_codes(tokens_in<float> w, const residual_code_options& o = {},
                                   const executor_ref& executor = {}) {
  if (o.stages < 1 || o.codes < 1 || o.codes > 65536 || o.rounds < 0)
    throw_invalid("residual codes need a stage, 1 to 65536 codes and rounds >= 0, not ", o.stages, ", ", o.codes,
                  " and ", o.rounds);
  detail::check_tile(o.tile);
  detail::check_finite_weights(w, executor);
  vector_codes codes{
      .outputs = w.rows(), .inputs = w.cols(), .tile_outputs = o.tile.outputs, .tile_inputs = o.tile.inputs};
  matrix<float> scaled = w;
  if (o.scales) {
    codes.scales.setOnes(w.rows(), 1);
    for (index_t r = 0; r < w.rows() && w.cols() > 0; ++r) {
      const double square = w.row(r).cast<double>().squaredNorm() / static_cast<double>(w.cols());
      if (square > 0) codes.scales(r, 0) = static_cast<float>(std::sqrt(square));
      scaled.row(r) /= codes.scales(r, 0);
    }
  }
  matrix<float> left = to_tiles<float>(scaled, o.tile);
  std::vector<float> weights(as_size(left.rows()), 1.0F);
  if (o.scales && o.tile.outputs == 1)
    for (index_t t = 0; t < left.rows(); ++t) {
      const float scale = codes.scales(t / codes.tile_cols(), 0);
      weights[as_size(t)] = scale * scale;
    }
  for (index_t m = 0; m < o.stages; ++m) {
    codes.codebooks.push_back(matrix<float>::Zero(o.codes, o.tile.size()));
    codes.indices.emplace_back(matrix<std::uint16_t>::Zero(codes.tile_rows(), codes.tile_cols()));
    if (left.rows() == 0) continue;
    kmeans<float> clusters(o.codes, o.tile.size(), {.rounds = o.rounds});
    clusters.begin(left, spread_rows{o.random.split(m)}, executor, weights);
    clusters.fit(left, executor, weights);
    clusters.label(left, executor);
    codes.codebooks.back() = clusters.table();
    for (index_t t = 0; t < left.rows(); ++t) {
      const index_t id = clusters.ids()[as_size(t)];
      if (id == no_code) throw_invalid("squares of what is left of tile ", t, " at stage ", m, " are past all numbers");
      codes.indices.back().data()[t] = static_cast<std::uint16_t>(id);
      left.row(t) -= codes.codebooks.back().row(id);
    }
  }
  return codes;
}

}  // namespace sluice::inline SLUICE_ISA
