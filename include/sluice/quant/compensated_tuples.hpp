/// Rounds a matrix to vector codes, tuple of inputs after tuple, each error made up for by the inputs to come (GPTVQ).
///
///   w [out,in];  a tile is D consecutive inputs of an output
///   a group of group_outputs x group_inputs weights has K entries; where it begins, from the weights as all earlier
///     blocks of the sweep left them: entries by rank, then Lloyd's rounds (quant/weighted_lloyd.hpp), then, with bits,
///     rounded to whole multiples of max|entry| / (2^(bits-1) - 1)
///   tuple by tuple: the nearest entry q, and e, pushed on later columns as in quant/column_sweep.hpp; the columns of a
///     tuple do not make up for one another
///
///   near and e   whole: |(w - q) U_tile^-1|, e = (w - q) U_tile^-1, U_tile the tuple's D x D: what outputs really lose
///                the others: sum over d of h_d (w_d - q_d)^2, e_d = (w_d - q_d) / U_dd, where
///                  plain: h = 1;  conditional: h_d = 1 / U_dd^2, in Lloyd's rounds too
///                  released: h_d = U_dd in Lloyd's rounds, 1 / U_dd in the sweep, for D > 1: the authors' program
///   on the correlated inputs of the test, which prints it, whole loses 8 % less than released, and conditional as much
///
/// With scale_inputs, entries stand for weights over a scale of so many inputs of a row: their largest magnitude where
/// the group begins, its logarithm rounded to `scale_bits` between the group's least and greatest; rows of zeros get
/// the least. A group with fewer tiles than K has some entries twice; equal distances, the lowest entry. Dead inputs
/// count as weights of 0; with a neutral factor nothing is pushed on. Inputs keep their order: a factor in another is
/// refused, as are weights that are not finite. Empty matrices give empty indices. Equal bits for any thread count. van
/// Baalen et al. 2024, "GPTVQ: The Blessing of Dimensionality for LLM Quantization", arXiv:2402.15319.
#pragma once

#include <sluice/quant/compensated_rounding.hpp>
#include <sluice/quant/tunable_codes.hpp>
#include <sluice/quant/weighted_lloyd.hpp>

#include <cmath>
#include <span>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

enum class tuple_metric { whole, plain, conditional, released };

struct tuple_options {
  index_t codes = 16;          ///< K, at most 65536; 2^(D bits a weight)
  index_t tile_inputs = 2;     ///< D
  index_t group_outputs = 0;   ///< outputs that share codebooks; 0: all
  index_t group_inputs = 256;  ///< inputs that share codebooks; 0: all
  index_t rounds = 100;        ///< of Lloyd
  tuple_metric metric = tuple_metric::whole;
  unweighed empty = unweighed::keep;  ///< the authors' program: zero
  int bits = 0;                       ///< of a number of an entry, 2 to 16; 0: float
  index_t scale_inputs = 0;           ///< inputs of a row that share a scale; 0: no scales
  int scale_bits = 4;
  index_t block = 128;  ///< of the sweep: a multiple of D
};

/// Entries become whole multiples of max|entry| / (2^(bits-1) - 1), which fit into so many bits.
template <FloatOrDouble Scalar>
void round_entries(matrix_map<Scalar> entries, int bits) {
  if (bits < 2 || bits > 16) throw_invalid("entries are rounded to 2 to 16 bits, not ", bits);
  if (entries.size() == 0) return;
  const Scalar step = entries.cwiseAbs().maxCoeff() / static_cast<Scalar>((1 << (bits - 1)) - 1);
  if (step > 0) entries = (entries / step).array().rint().matrix() * step;
}

namespace detail {

template <typename Scalar>
class tuple_rounder {
public:
  tuple_rounder(tunable_codes<Scalar>& codes, const inverse_factor& factor, const tuple_options& o,
                const executor_ref& inner)
      : codes_(codes),
        shape_(codes.shape()),
        factor_(factor),
        o_(o),
        inner_(inner),
        entries_(as_size(shape_.regions())),
        searches_(as_size(shape_.regions())) {}

  void enter(index_t first_row, index_t rows, index_t begin, index_t end, const double* w, index_t pitch) {
    const index_t width = shape_.region_inputs == 0 ? shape_.inputs : shape_.region_inputs;
    for (index_t first = (begin + width - 1) / width * width; first < end; first += width)
      for (index_t row = 0; row < rows; row += group_rows()) {
        const index_t count = (std::min)(group_rows(), rows - row), columns = (std::min)(width, shape_.inputs - first);
        learn(first_row + row, count, first, columns, w + row * pitch + first - begin, pitch);
      }
  }

  void round_columns(index_t first_row, index_t rows, index_t column, index_t count, const double* w, double* q,
             index_t pitch) {
    const index_t b = column / o_.tile_inputs;
    std::vector<index_t> ids;
    for (index_t row = 0; row < rows; row += group_rows()) {
      const index_t some = (std::min)(group_rows(), rows - row), region = shape_.region(first_row + row, b);
      matrix<double> x = matrix<double>::Zero(some, o_.tile_inputs);
      ids.resize(as_size(some));
      for (index_t r = 0; r < some; ++r)
        for (index_t d = 0; d < count; ++d)
          x(r, d) = w[d * pitch + row + r] / static_cast<double>(codes_.scale(first_row + row + r, column));
      find(region, column, count, x, ids.data());
      for (index_t r = 0; r < some; ++r) {
        const index_t id = ids[as_size(r)] == no_code ? 0 : ids[as_size(r)], output = first_row + row + r;
        codes_.set_index(0, output, b, id);
        const Scalar* const entry = std::as_const(codes_).codebook(region, 0).data() + id * o_.tile_inputs;
        for (index_t d = 0; d < count; ++d)
          q[d * pitch + row + r] = static_cast<double>(codes_.scale(output, column) * entry[d]);
      }
    }
  }

private:
  index_t group_rows() const noexcept { return shape_.region_outputs == 0 ? shape_.outputs : shape_.region_outputs; }

  double weight(index_t column, bool learning) const {
    const double u = factor_.diagonal(column);
    if (o_.metric == tuple_metric::conditional) return 1 / (u * u);
    if (o_.metric == tuple_metric::released && o_.tile_inputs > 1) return learning ? u : 1 / u;
    return 1;
  }

  /// Entries for the tuples x at a column, of which `count` columns are there.
  void find(index_t region, index_t column, index_t count, matrix<double>& x, index_t* ids) {
    const matrix<double>& entries = entries_[as_size(region)];
    weighted_search<double>& search = searches_[as_size(region)];
    if (o_.metric == tuple_metric::whole) {
      matrix<double> costs = entries;
      for (matrix<double>* const m : {&x, &costs})
        for (index_t d = 0; d < o_.tile_inputs; ++d) {
          for (index_t before = 0; before < d && d < count; ++before)
            m->col(d) -= factor_.row(column + before)[column + d] * m->col(before);
          m->col(d) *= d < count ? 1 / factor_.diagonal(column + d) : 0;
        }
      search(x, matrix<double>(), const_matrix_map<double>(costs.data(), costs.rows(), costs.cols()), ids, inner_);
      return;
    }
    std::vector<double> h(as_size(o_.tile_inputs), 0.0);
    for (index_t d = 0; d < count; ++d) h[as_size(d)] = weight(column + d, false);
    search.by_columns(x, h, const_matrix_map<double>(entries.data(), entries.rows(), entries.cols()), ids, inner_);
  }

  /// Scales and entries of a group.
  void learn(index_t first_row, index_t rows, index_t first, index_t columns, const double* w, index_t pitch) {
    using weights = Eigen::Map<const matrix<double>, 0, Eigen::OuterStride<>>;
    matrix<double> x = weights(w, rows, columns, Eigen::OuterStride<>(pitch)), h(rows, columns);
    if (o_.scale_inputs > 0) take_scales(x, first_row, first);
    for (index_t i = 0; i < columns; ++i)
      for (index_t r = 0; r < rows; ++r) {
        const auto scale = static_cast<double>(codes_.scale(first_row + r, first + i));
        x(r, i) /= scale;
        h(r, i) = weight(first + i, true) * scale * scale;
      }
    const tile_shape tile = tile_shape::of(shape_);
    const matrix<double> tiles = to_tiles<double>(x, tile), tile_weights = to_tiles<double>(h, tile);
    matrix<double> entries = codes_by_rank<double>(tiles, o_.codes);
    weighted_lloyd<double>(tiles, tile_weights, entries, o_.rounds, o_.empty, inner_);
    const index_t region = shape_.region(first_row, first / o_.tile_inputs);
    matrix_map<Scalar> kept = codes_.codebook(region, 0).map();
    kept = entries.cast<Scalar>();
    if (o_.bits > 0) round_entries<Scalar>(kept, o_.bits);
    entries_[as_size(region)] = kept.template cast<double>();
  }

  /// The largest magnitude of every block of a row, rounded on a scale of logarithms.
  void take_scales(const matrix<double>& x, index_t first_row, index_t first) {
    const index_t blocks = (x.cols() + o_.scale_inputs - 1) / o_.scale_inputs;
    matrix<double> largest(x.rows(), blocks);
    double least = (std::numeric_limits<double>::max)(), most = 0;
    for (index_t r = 0; r < x.rows(); ++r)
      for (index_t b = 0; b < blocks; ++b) {
        const index_t begin = b * o_.scale_inputs, count = (std::min)(o_.scale_inputs, x.cols() - begin);
        largest(r, b) = x.row(r).segment(begin, count).cwiseAbs().maxCoeff();
        most = (std::max)(most, largest(r, b));
        if (largest(r, b) > 0) least = (std::min)(least, largest(r, b));
      }
    if (!(most > 0)) least = most = 1;
    matrix_map<Scalar> scales = codes_.scales().map();
    const double low = std::log10(least), step = (std::log10(most) - low) / ((1 << o_.scale_bits) - 1);
    for (index_t r = 0; r < x.rows(); ++r)
      for (index_t b = 0; b < blocks; ++b) {
        const double place = std::log10((std::max)(largest(r, b), least)) - low;
        const double code = step > 0 ? std::nearbyint(place / step) : 0;
        scales(first_row + r, first / o_.scale_inputs + b) = static_cast<Scalar>(std::pow(10.0, low + code * step));
      }
  }

  tunable_codes<Scalar>& codes_;
  const vector_codes& shape_;
  const inverse_factor& factor_;
  const tuple_options& o_;
  executor_ref inner_;                   ///< for a task that is alone
  std::vector<matrix<double>> entries_;  ///< by group
  std::vector<weighted_search<double>> searches_;
};

}  // namespace detail

/// One stage of codes; `plain()` is what storages are packed from. Throws std::invalid_argument if the factor does not
/// fit, a weight is not finite or options contradict one another.
template <FloatOrDouble Scalar = float>
tunable_codes<Scalar> compensated_tuples(tokens_in<float> w, const inverse_factor& factor, const tuple_options& o = {},
                                         const executor_ref& executor = {}) {
  if (o.codes < 1 || o.codes > 65536 || o.tile_inputs < 1 || o.rounds < 0 || o.group_inputs < 0 ||
      o.group_outputs < 0 || o.scale_inputs < 0 || o.scale_bits < 1 || o.scale_bits > 16)
    throw_invalid(
        "tuples need 1 to 65536 codes, tiles of 1 or more inputs, rounds, groups and scales of 0 or more and 1 to 16 "
        "bits a scale, not ",
        o.codes, ", ", o.tile_inputs, ", ", o.rounds, ", [", o.group_outputs, ", ", o.group_inputs, "], ",
        o.scale_inputs, " and ", o.scale_bits);
  if (o.scale_inputs > 0 && (o.scale_inputs % o.tile_inputs != 0 || o.group_inputs % o.scale_inputs != 0))
    throw_invalid("scales of ", o.scale_inputs, " inputs are not of whole tiles of ", o.tile_inputs,
                  " or do not make up groups of ", o.group_inputs);
  for (index_t i = 0; i < factor.inputs(); ++i)
    if (factor.order()[as_size(i)] != i)
      throw_invalid("tuples are of neighbouring inputs, which a factor in another order parts");
  matrix_buffer<double> swept = detail::in_order(w, factor, executor);
  vector_codes plain{.outputs = w.rows(),
                     .inputs = w.cols(),
                     .tile_inputs = o.tile_inputs,
                     .region_outputs = o.group_outputs,
                     .region_inputs = o.group_inputs,
                     .scale_inputs = o.scale_inputs};
  plain.indices.emplace_back(matrix<std::uint16_t>::Zero(plain.tile_rows(), plain.tile_cols()));
  plain.codebooks.assign(as_size(plain.regions()), matrix<float>::Zero(o.codes, o.tile_inputs));
  if (o.scale_inputs > 0) plain.scales.setOnes(w.rows(), plain.scale_groups());
  tunable_codes<Scalar> codes(std::move(plain));
  if (w.size() == 0) return codes;
  const index_t together = o.group_outputs == 0 ? w.rows() : (63 / o.group_outputs + 1) * o.group_outputs;
  detail::tuple_rounder<Scalar> rounder(codes, factor, o, together >= w.rows() ? executor : executor_ref());
  sweep_columns(
      swept, factor, rounder,
      {.block = o.block, .step = o.tile_inputs, .joint = o.metric == tuple_metric::whole, .rows_together = together},
      executor);
  return codes;
}

}  // namespace sluice::inline SLUICE_ISA
