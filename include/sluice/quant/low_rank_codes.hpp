/// Codes of fewer numbers than the tiles they stand for, lifted by one matrix: LR2VQ.
///
///   tile t = P c[ids[t]]        P [m,r] lifts, c [K,r], m weights a tile (quant/tiles.hpp), r <= m
///   dc[k]  = sum over tiles t of code k of P^T dtile_t;    dP = sum over all tiles of dtile_t c[ids[t]]^T
///
///   start   P = the r leading eigenvectors of the sum of tile^T tile, c = k-means of the projections tile P
///   assign  ids[t] = argmin over k of |tile_t - P c[k]|, the lowest where equal
///   width   low_rank_width: the r that adds up to the least squared error, what r directions leave out plus
///           what k-means of the projections leaves; the smallest where equal
///
/// P, c are parameters: any loss of the decoded weights trains them. r = m with P = I is plain vector quantisation, K
/// >= number of tiles a plain factorisation of rank r. Sums run tile by tile: equal bits for any thread count. Weights
/// that are not finite are refused. Zhu, Zhou, Zhao 2022, "Learning Low-Rank Representations for Model Compression",
/// arXiv:2211.11397, which learns the projections before they are clustered; here they begin with singular vectors.
#pragma once

#include <sluice/codebook/kmeans.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/kernel/small_svd.hpp>
#include <sluice/quant/tiles.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct low_rank_options {
  index_t codes = 256;  ///< K, at most 65536
  index_t width = 2;    ///< r
  index_t rounds = 25;  ///< of k-means
  random_source random = {};
};

namespace detail {

/// Directions by how much of the tiles they hold: columns of u, squares in s.
template <typename Scalar>
kernel::small_svd tile_directions(const matrix<Scalar>& tiles) {
  const matrix<double> x = tiles.template cast<double>(), moments = x.transpose() * x;
  if (!is_between(moments.trace(), 0.0, (std::numeric_limits<double>::max)()))
    throw_invalid("weights that hold NaN or infinity have no low-rank codes");
  return kernel::small_svd(moments);
}

inline void check_low_rank(const low_rank_options& o, index_t tile) {
  if (o.codes < 1 || o.codes > 65536 || o.width < 1 || o.width > tile || o.rounds < 0)
    throw_invalid("low-rank codes need 1 to 65536 codes, a width of 1 to ", tile, " and rounds >= 0, not ", o.codes,
                  ", ", o.width, " and ", o.rounds);
}

}  // namespace detail

template <FloatOrDouble Scalar>
class low_rank_codes {
public:
  using scalar = Scalar;

  /// Of weights [out,in]. Throws std::invalid_argument unless 1 <= K <= 65536, 1 <= r <= m, rounds >= 0, there is a
  /// weight and none is NaN.
  low_rank_codes(tokens_in<Scalar> w, tile_shape tile, const low_rank_options& o, const executor_ref& executor = {})
      : outputs_(w.rows()), inputs_(w.cols()), tile_(tile) {
    const matrix<Scalar> tiles = to_tiles<Scalar>(w, tile);
    detail::check_low_rank(o, tile.size());
    lift_ = {{tile.size(), o.width}, parameter_role::vector};
    lift_.map() = detail::tile_directions(tiles).u.leftCols(o.width).template cast<Scalar>();
    kmeans<Scalar> clusters(o.codes, o.width, {.rounds = o.rounds});
    const matrix<Scalar> projected = tiles * lift_.map();
    clusters.begin(projected, spread_rows{o.random}, executor);
    clusters.fit(projected, executor);
    codebook_ = {{o.codes, o.width}, parameter_role::vector};
    codebook_.map() = clusters.table();
    clusters.label(projected, executor);
    ids_.assign(clusters.ids().begin(), clusters.ids().end());
    if (std::find(ids_.begin(), ids_.end(), no_code) != ids_.end())
      throw_invalid("squares of projected tiles are past all numbers");
  }

  index_t outputs() const noexcept { return outputs_; }
  index_t inputs() const noexcept { return inputs_; }
  tile_shape tile() const noexcept { return tile_; }
  parameter<Scalar>& lift() noexcept { return lift_; }
  const parameter<Scalar>& lift() const noexcept { return lift_; }
  parameter<Scalar>& codebook() noexcept { return codebook_; }
  const parameter<Scalar>& codebook() const noexcept { return codebook_; }
  /// [tiles]
  const std::vector<index_t>& ids() const noexcept { return ids_; }

  matrix<Scalar> to_matrix() const {
    const matrix<Scalar> codes = lifted();
    matrix<Scalar> tiles(static_cast<index_t>(ids_.size()), tile_.size());
    for (index_t t = 0; t < tiles.rows(); ++t) tiles.row(t) = codes.row(ids_[as_size(t)]);
    return from_tiles<Scalar>(tiles, outputs_, inputs_, tile_);
  }

  /// Adds the gradients of P and c. Throws std::invalid_argument if dw has another shape than the matrix.
  void backward(tokens_in<Scalar> dw) {
    check_shape(dw);
    const matrix<Scalar> dtiles = to_tiles<Scalar>(dw, tile_);
    matrix<Scalar> sums = matrix<Scalar>::Zero(codebook_.rows(), tile_.size());  // of the tiles of each code
    for (index_t t = 0; t < dtiles.rows(); ++t) sums.row(ids_[as_size(t)]) += dtiles.row(t);
    codebook_.gradient_map() += sums * lift_.map();
    lift_.gradient_map() += sums.transpose() * codebook_.map();
  }

  /// Every tile of w goes to its nearest code. Throws std::invalid_argument for another shape.
  void assign(tokens_in<Scalar> w, const executor_ref& executor = {}) {
    check_shape(w);
    const matrix<Scalar> tiles = to_tiles<Scalar>(w, tile_), codes = lifted();
    code_search<Scalar> search;
    nearest_scratch<Scalar> scratch;
    std::vector<index_t> found(ids_.size());
    squared_distance{}.prepare<Scalar>(const_matrix_map<Scalar>(codes.data(), codes.rows(), codes.cols()), search,
                                       executor);
    nearest_codes<Scalar>(tiles, search, matrix_map<index_t>(found.data(), tiles.rows(), 1), nullptr, scratch,
                          executor);
    for (std::size_t t = 0; t < found.size(); ++t)
      if (found[t] != no_code) ids_[t] = found[t];
  }

  /// As plain vector codes whose entries are the lifted ones, rounded to float.
  vector_codes plain() const {
    vector_codes codes{
        .outputs = outputs_, .inputs = inputs_, .tile_outputs = tile_.outputs, .tile_inputs = tile_.inputs};
    codes.codebooks.push_back(lifted().template cast<float>());
    matrix<std::uint16_t> indices(codes.tile_rows(), codes.tile_cols());
    for (index_t t = 0; t < indices.size(); ++t) indices.data()[t] = static_cast<std::uint16_t>(ids_[as_size(t)]);
    codes.indices.push_back(std::move(indices));
    return codes;
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("lift", self.lift_);
    visit("codebook", self.codebook_);
  }

private:
  matrix<Scalar> lifted() const { return codebook_.map() * lift_.map().transpose(); }
  void check_shape(tokens_in<Scalar> w) const {
    if (w.rows() != outputs_ || w.cols() != inputs_)
      throw_invalid("low-rank codes of a matrix [", outputs_, ", ", inputs_, "] are none of one [", w.rows(), ", ",
                    w.cols(), "]");
  }

  index_t outputs_;
  index_t inputs_;
  tile_shape tile_;
  parameter<Scalar> lift_, codebook_;
  std::vector<index_t> ids_;
};

static_assert(HasParameters<low_rank_codes<float>>);

/// What a width costs: squared error of the directions left out, and of k-means in those that stay.
struct low_rank_error {
  double left_out = 0;
  double clustered = 0;
  double total() const noexcept { return left_out + clustered; }
};

/// For the width of the options. Throws std::invalid_argument as the class does.
template <FloatOrDouble Scalar>
low_rank_error low_rank_error_of(tokens_in<Scalar> w, tile_shape tile, const low_rank_options& o,
                                 const executor_ref& executor = {}) {
  const matrix<Scalar> tiles = to_tiles<Scalar>(w, tile);
  detail::check_low_rank(o, tile.size());
  const kernel::small_svd directions = detail::tile_directions(tiles);
  const matrix<Scalar> projected = tiles * directions.u.leftCols(o.width).template cast<Scalar>();
  kmeans<Scalar> clusters(o.codes, o.width, {.rounds = o.rounds});
  clusters.begin(projected, spread_rows{o.random}, executor);
  clusters.fit(projected, executor);
  return {directions.s.bottomRows(tile.size() - o.width).sum(), clusters.label(projected, executor)};
}

/// The width with the least error; k-means is made once for each. Throws std::invalid_argument as the class does.
template <FloatOrDouble Scalar>
index_t low_rank_width(tokens_in<Scalar> w, tile_shape tile, low_rank_options o, const executor_ref& executor = {}) {
  index_t best = 1;
  double least = 0;
  for (o.width = 1; o.width <= tile.size(); ++o.width) {
    const double error = low_rank_error_of<Scalar>(w, tile, o, executor).total();
    if (o.width > 1 && error >= least) continue;
    best = o.width;
    least = error;
  }
  return best;
}

}  // namespace sluice::inline SLUICE_ISA
