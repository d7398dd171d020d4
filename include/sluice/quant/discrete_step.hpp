/// Indices move to where a step of an optimiser has brought the weights, a few tiles at a time: PV-Tuning's V step.
///
///   R [out,in]  the weights as an optimiser of dense weights would have them, Q the decoded ones, N tiles
///   score(t)  = |R - Q|^2 over tile t;  S = the ceil(fraction N) tiles with the largest scores, in that order
///   with a temperature T, S is drawn without replacement, each tile with odds sqrt(score)^(1/T)
///   for t in S: stage by stage, the entry nearest to what the other stages leave of R; kept where nearer than before
///   with trust: in that order, until |new Q - Q| / |Q| of all that changed reaches it; that change is the last
///
/// Where a tile's weights have different scales, near is by the weights and not by the entries. One stage finds the
/// nearest entry, several the first local best (a beam of 1). Equal scores: the first tile; equal distances: the index
/// stays, then the lowest entry. fraction = 0 changes nothing; tiles that hold NaN in R or Q, and those that are as R
/// has them, are left alone. Equal bits for any thread count. Codebooks and scales learn by gradients
/// (tunable_codes.hpp) between these steps. Malinovskii et al. 2024, "PV-Tuning: Beyond Straight-Through Estimation for
/// Extreme LLM Compression", arXiv:2405.14852.
#pragma once

#include <sluice/core/random.hpp>
#include <sluice/kernel/top_k.hpp>
#include <sluice/quant/tunable_codes.hpp>
#include <sluice/quant/weighted_lloyd.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct discrete_step_options {
  double fraction = 0.01;              ///< of the tiles that may change; at least one may, unless it is 0
  std::optional<double> trust = 0.01;  ///< largest relative change of the matrix; none: no bound
  double temperature = 0;              ///< 0: the largest scores
  random_source random = {};
};

struct discrete_step_report {
  index_t looked_at = 0;  ///< tiles that might have changed
  index_t changed = 0;    ///< tiles that did
  double moved = 0;       ///< |new Q - Q| / |Q|; 0 if Q is zero
};

namespace detail {

/// The tiles that may change, the most important first.
inline buffer<index_t> tiles_to_change(const buffer<double>& scores, const discrete_step_options& o) {
  buffer<double> lots = scores;
  if (o.temperature > 0)
    for (index_t t = 0; t < lots.size(); ++t)
      lots[t] = scores[t] > 0
                    ? std::log(scores[t]) / (2 * o.temperature) + o.random.gumbel(random_site("discrete_step.tiles"), t)
                    : std::numeric_limits<double>::lowest();
  const auto wanted = static_cast<index_t>(std::ceil(o.fraction * static_cast<double>(scores.size())));
  const auto wrong = static_cast<index_t>(std::count_if(scores.begin(), scores.end(), [](double s) { return s > 0; }));
  buffer<index_t> tiles((std::min)(wanted, wrong));
  kernel::top_k(lots.data(), lots.size(), tiles.size(), tiles.data());
  return tiles;
}

/// Old and wanted tiles side by side, and the nearest entries for some of them.
template <typename Scalar>
class discrete_move {
public:
  discrete_move(const tunable_codes<Scalar>& codes, tokens_in<Scalar> reference)
      : codes_(codes), across_(codes.shape().tile_cols()) {
    const tile_shape tile = tile_shape::of(codes.shape());
    old_ = to_tiles<Scalar>(codes.to_matrix(), tile);
    wanted_ = to_tiles<Scalar>(reference, tile);
    const matrix<Scalar> scales = matrix<Scalar>::NullaryExpr(codes.outputs(), codes.inputs(),
                                                              [&](index_t o, index_t i) { return codes.scale(o, i); });
    scales_ = to_tiles<Scalar>(scales, tile);  // zero where a tile is padded, so that nothing there counts
  }

  /// |R - Q|^2 of every tile; 0 where one holds NaN.
  buffer<double> scores() const {
    buffer<double> scores(old_.rows());
    for (index_t t = 0; t < old_.rows(); ++t) {
      const matrix<double> difference = (wanted_.row(t) - old_.row(t)).template cast<double>();
      scores[t] = any_nan(difference.data(), difference.size()) ? 0 : difference.squaredNorm();
    }
    return scores;
  }
  double size() const { return std::sqrt(old_.template cast<double>().squaredNorm()); }

  /// New indices [n, M] of the tiles named, of which none holds NaN.
  matrix<index_t> nearest(const buffer<index_t>& tiles, const executor_ref& executor) const {
    matrix<index_t> entries(tiles.size(), codes_.stages());
    for (index_t n = 0; n < tiles.size(); ++n)
      for (index_t m = 0; m < codes_.stages(); ++m) entries(n, m) = index(m, tiles[n]);
    std::vector<buffer<index_t>> places(as_size(codes_.shape().regions()));  // in `tiles`, by region
    for (index_t n = 0; n < tiles.size(); ++n) places[as_size(region(tiles[n]))].push_back(n);
    for (const buffer<index_t>& some : places)
      if (!some.empty()) improve(tiles, some, entries, executor);
    return entries;
  }

  /// |new Q - Q|^2 of a tile with these indices.
  double change(index_t t, const index_t* entries) const {
    matrix<Scalar> now = matrix<Scalar>::Zero(1, old_.cols());
    for (index_t m = 0; m < codes_.stages(); ++m) now += book(region(t), m).row(entries[m]);
    return (now.cwiseProduct(scales_.row(t)) - old_.row(t)).template cast<double>().squaredNorm();
  }
  index_t index(index_t stage, index_t t) const { return codes_.index(stage, t / across_, t % across_); }
  index_t across() const noexcept { return across_; }

private:
  index_t region(index_t t) const { return codes_.shape().region(t / across_, t % across_); }
  const_matrix_map<Scalar> book(index_t region, index_t stage) const { return codes_.codebook(region, stage).map(); }

  /// Stage by stage, for tiles of one region.
  void improve(const buffer<index_t>& tiles, const buffer<index_t>& places, matrix<index_t>& entries,
               const executor_ref& executor) const {
    const index_t count = places.size(), width = old_.cols(), own = region(tiles[places[0]]);
    matrix<Scalar> rest(count, width), scale(count, width);
    for (index_t n = 0; n < count; ++n) {
      rest.row(n) = wanted_.row(tiles[places[n]]) - old_.row(tiles[places[n]]);
      scale.row(n) = scales_.row(tiles[places[n]]);
    }
    const matrix<Scalar> squares = scale.array().square();
    std::vector<index_t> found(as_size(count));
    for (index_t m = 0; m < codes_.stages(); ++m) {
      const const_matrix_map<Scalar> codes = book(own, m);
      const auto scaled = [&](index_t n, index_t entry) { return scale.row(n).cwiseProduct(codes.row(entry)); };
      for (index_t n = 0; n < count; ++n) rest.row(n) += scaled(n, entries(places[n], m));
      search_.of_products(rest.cwiseProduct(scale), squares, codes, found.data(), executor);
      for (index_t n = 0; n < count; ++n) {
        index_t& entry = entries(places[n], m);
        const index_t other = found[as_size(n)];
        if (other != no_code &&
            (rest.row(n) - scaled(n, other)).squaredNorm() < (rest.row(n) - scaled(n, entry)).squaredNorm())
          entry = other;
        rest.row(n) -= scaled(n, entry);
      }
    }
  }

  const tunable_codes<Scalar>& codes_;
  index_t across_;
  matrix<Scalar> old_, wanted_, scales_;  ///< [tiles, size of a tile]
  mutable weighted_search<Scalar> search_;
};

}  // namespace detail

/// Throws std::invalid_argument if R has another shape than the matrix, or unless 0 <= fraction <= 1, trust > 0 and
/// temperature >= 0.
template <FloatOrDouble Scalar>
discrete_step_report discrete_step(tunable_codes<Scalar>& codes, tokens_in<Scalar> reference,
                                   const discrete_step_options& o = {}, const executor_ref& executor = {}) {
  if (reference.rows() != codes.outputs() || reference.cols() != codes.inputs())
    throw_invalid("codes of a matrix [", codes.outputs(), ", ", codes.inputs(), "] cannot go to one of [",
                  reference.rows(), ", ", reference.cols(), "]");
  if (!is_between(o.fraction, 0, 1) || (o.trust && !is_above(*o.trust, 0)) || !is_at_least(o.temperature, 0))
    throw_invalid("a discrete step needs a fraction in [0, 1], trust > 0 and temperature >= 0, not ", o.fraction, ", ",
                  o.trust.value_or(1), " and ", o.temperature);
  const detail::discrete_move<Scalar> move(codes, reference);
  const buffer<index_t> tiles = detail::tiles_to_change(move.scores(), o);
  const matrix<index_t> entries = move.nearest(tiles, executor);
  discrete_step_report report{.looked_at = tiles.size()};
  const double size = move.size(), bound = o.trust ? *o.trust * size : (std::numeric_limits<double>::max)();
  double change = 0;
  for (index_t n = 0; n < tiles.size(); ++n) {
    if (report.changed > 0 && std::sqrt(change) >= bound) break;
    const index_t* const now = entries.data() + n * codes.stages();
    const index_t t = tiles[n];
    bool changes = false;
    for (index_t m = 0; m < codes.stages(); ++m) changes = changes || now[m] != move.index(m, t);
    if (!changes) continue;
    ++report.changed;
    change += move.change(t, now);
    for (index_t m = 0; m < codes.stages(); ++m) codes.set_index(m, t / move.across(), t % move.across(), now[m]);
  }
  report.moved = size > 0 ? std::sqrt(change) / size : 0;
  return report;
}

}  // namespace sluice::inline SLUICE_ISA
