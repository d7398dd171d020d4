/// Rounds a matrix to vector codes that run down its outputs, input after input, each error made up for (VPTQ).
///
///   w [out,in];  a stack is v consecutive outputs of one input, the last one padded with zeros
///   1. x = (w - bias) / scale, an input at a time: its least weight, and its range; or w itself
///   2. main entries: k-means of all stacks, weighted by activity(input) scale^2, what a unit of error costs
///   3. the sweep: every stack of an input to its nearest entry, in the factor's order, as in quant/column_sweep.hpp
///   4. with residual codes: k-means of what the sweep left over, compensated weights minus entries; then the sweep
///     from the start again, nearest main entry first and nearest residual entry to the rest
///   outliers: the first inputs of the factor's order, by activity then, with entries of their own and shorter stacks
///
/// activity [in] is the diagonal of the second moments, or none: ones. group_inputs inputs, in order, share codebooks.
/// An input whose weights are all alike has scale 1. Equal distances, the lowest entry. Fewer stacks than codes leave
/// entries twice. Dead inputs count as weights of 0; a neutral factor pushes nothing on. Weights that are not finite
/// are refused. Equal bits for any thread count. Liu et al. 2024, "VPTQ: Extreme Low-bit Vector Post-Training
/// Quantization for Large Language Models", arXiv:2409.17066, which weighs by the activity alone.
#pragma once

#include <sluice/codebook/kmeans.hpp>
#include <sluice/kernel/format/column_codes.hpp>
#include <sluice/quant/compensated_rounding.hpp>
#include <sluice/quant/tiles.hpp>
#include <sluice/quant/weighted_lloyd.hpp>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct stack_options {
  index_t codes = 256;         ///< main entries, at most 65536
  index_t residual_codes = 0;  ///< 0: none
  index_t tile_outputs = 8;    ///< v
  index_t group_inputs = 0;    ///< inputs that share codebooks, in the factor's order; 0: all
  index_t outliers = 0;        ///< inputs with the largest activity
  index_t outlier_codes = 256;
  index_t outlier_tile = 4;
  bool normalise = false;
  index_t rounds = 25;  ///< of k-means
  random_source random = {};
  index_t block = 128;  ///< of the sweep
};

namespace detail {

class stack_rounder {
public:
  stack_rounder(column_codes& codes, matrix<double>& left) : codes_(codes), left_(left) {}

  void round_columns(index_t first_row, index_t rows, index_t column, index_t, const double* w, double* q, index_t) {
    const bool is_outlier = column < codes_.outliers.inputs;
    vector_codes& part = is_outlier ? codes_.outliers : codes_.main;
    const index_t own = is_outlier ? column : column - codes_.outliers.inputs, v = part.tile_outputs;
    const auto input = as_size(codes_.permutation[as_size(column)]);
    const double scale = codes_.scale.empty() ? 1 : static_cast<double>(codes_.scale[input]);
    const double bias = codes_.bias.empty() ? 0 : static_cast<double>(codes_.bias[input]);
    matrix<double> rest = matrix<double>::Zero((rows + v - 1) / v, v);
    for (index_t r = 0; r < rows; ++r) rest(r / v, r % v) = (w[r] - bias) / scale;
    const matrix<double> x = rest;
    std::vector<index_t> ids(as_size(rest.rows()));
    weighted_search<double> search;
    for (index_t m = 0; m < part.stages(); ++m) {
      const matrix<double> book = part.codebook(part.region(first_row / v, own), m).cast<double>();
      search(rest, matrix<double>(), const_matrix_map<double>(book.data(), book.rows(), v), ids.data());
      for (index_t t = 0; t < rest.rows(); ++t) {
        const index_t id = ids[as_size(t)] == no_code ? 0 : ids[as_size(t)];
        part.indices[as_size(m)](first_row / v + t, own) = static_cast<std::uint16_t>(id);
        rest.row(t) -= book.row(id);
      }
    }
    for (index_t r = 0; r < rows; ++r) {
      q[r] = scale * (x(r / v, r % v) - rest(r / v, r % v)) + bias;
      left_(first_row + r, column) = rest(r / v, r % v);
    }
  }

private:
  column_codes& codes_;
  matrix<double>& left_;
};

/// Entries for the stacks of some columns, each weighted.
inline matrix<float> stack_entries(const matrix<double>& columns, std::span<const double> weights, index_t v,
                                   index_t codes, const stack_options& o, std::int64_t place,
                                   const executor_ref& executor) {
  const matrix<float> stacks = to_tiles<float>(columns.cast<float>(), {v, 1});
  std::vector<float> of_stacks(as_size(stacks.rows()));
  for (std::size_t t = 0; t < of_stacks.size(); ++t) of_stacks[t] = static_cast<float>(weights[t % weights.size()]);
  if (std::none_of(of_stacks.begin(), of_stacks.end(), [](float weight) { return weight > 0; }))
    std::fill(of_stacks.begin(), of_stacks.end(), 1.0F);
  kmeans<float> clusters(codes, v, {.rounds = o.rounds});
  clusters.begin(stacks, spread_rows{o.random.split(place)}, executor, of_stacks);
  clusters.fit(stacks, executor, of_stacks);
  return clusters.table();
}

}  // namespace detail

/// The sweep alone: indices of codes whose codebooks, order, scales and biases are given. Returns what is left of every
/// column once its entries are taken away, in the order of the columns and over their scales. Throws
/// std::invalid_argument if parts do not fit or a weight is not finite.
inline matrix<double> sweep_stacks(tokens_in<float> w, const inverse_factor& factor, column_codes& codes,
                                   index_t block = 128, const executor_ref& executor = {}) {
  codes.validate();
  if (codes.outputs() != w.rows() || codes.inputs() != w.cols() || codes.permutation != factor.order())
    throw_invalid("stacks of a matrix [", codes.outputs(), ", ", codes.inputs(),
                  "] in the factor's order are none of one [", w.rows(), ", ", w.cols(), "]");
  matrix_buffer<double> ordered = detail::in_order(w, factor, executor);
  matrix<double> left = matrix<double>::Zero(w.rows(), w.cols());
  detail::stack_rounder rounder(codes, left);
  const index_t heights =
      std::lcm(codes.main.tile_outputs, codes.outliers.inputs > 0 ? codes.outliers.tile_outputs : 1);
  const index_t region = std::lcm(heights, (std::max)(codes.main.region_outputs, index_t{1}));
  sweep_columns(ordered, factor, rounder, {.block = block, .rows_together = (511 / region + 1) * region}, executor);
  return left;
}

/// Throws std::invalid_argument if the factor or the activity does not fit, a weight is not finite or options
/// contradict one another; a factor in order of activity is needed for outliers.
inline column_codes compensated_stacks(tokens_in<float> w, const inverse_factor& factor,
                                       std::span<const double> activity = {}, const stack_options& o = {},
                                       const executor_ref& executor = {}) {
  const auto is_size = [](index_t codes) { return codes >= 1 && codes <= 65536; };
  if (!is_size(o.codes) || (o.residual_codes != 0 && !is_size(o.residual_codes)) || !is_size(o.outlier_codes) ||
      o.tile_outputs < 1 || o.outlier_tile < 1 || o.group_inputs < 0 || o.rounds < 0 || o.outliers < 0 ||
      o.outliers > w.cols())
    throw_invalid("stacks need 1 to 65536 codes, heights of 1 or more, 0 to ", w.cols(),
                  " outliers and groups and rounds of 0 or more, not ", o.codes, ", ", o.residual_codes, " and ",
                  o.outlier_codes, ", ", o.tile_outputs, " and ", o.outlier_tile, ", ", o.outliers, ", ",
                  o.group_inputs, " and ", o.rounds);
  if (!activity.empty() && static_cast<index_t>(activity.size()) != w.cols())
    throw_invalid("a matrix [", w.rows(), ", ", w.cols(), "] has no inputs of ", activity.size(), " activities");
  matrix_buffer<double> ordered = detail::in_order(w, factor, executor);
  column_codes codes;
  codes.outliers = {.outputs = w.rows(), .inputs = o.outliers, .tile_outputs = o.outlier_tile};
  codes.main = {.outputs = w.rows(),
                .inputs = w.cols() - o.outliers,
                .tile_outputs = o.tile_outputs,
                .region_inputs = o.group_inputs};
  codes.permutation = factor.order();
  matrix<double> x = ordered.map();
  std::vector<double> weights(as_size(w.cols()), 1.0);  // of the columns, in order
  if (o.normalise && w.rows() > 0) codes.scale.resize(as_size(w.cols())), codes.bias.resize(as_size(w.cols()));
  for (index_t j = 0; j < w.cols(); ++j) {
    const auto input = as_size(codes.permutation[as_size(j)]);
    if (!activity.empty()) weights[as_size(j)] = activity[input];
    if (codes.scale.empty()) continue;
    const double least = x.col(j).minCoeff(), range = x.col(j).maxCoeff() - least;
    codes.bias[input] = static_cast<float>(least);
    codes.scale[input] = range > 0 ? static_cast<float>(range) : 1.0F;
    x.col(j) = (x.col(j).array() - static_cast<double>(codes.bias[input])) / static_cast<double>(codes.scale[input]);
    weights[as_size(j)] *= static_cast<double>(codes.scale[input]) * static_cast<double>(codes.scale[input]);
  }
  /// A stage more: entries for some of the columns, region by region, from what is left of them.
  const auto add_stage = [&](vector_codes& part, const matrix<double>& columns, index_t first, index_t entries) {
    const index_t width = part.region_inputs == 0 ? part.inputs : part.region_inputs, stages = part.stages();
    part.indices.emplace_back(matrix<std::uint16_t>::Zero(part.tile_rows(), part.tile_cols()));
    for (index_t r = 0; r < part.regions(); ++r) {
      const index_t begin = first + r * width, count = (std::min)(width, first + part.inputs - begin);
      const std::span<const double> own(weights.data() + begin, as_size(count));
      matrix<float> book = matrix<float>::Zero(entries, part.tile_outputs);
      if (w.rows() > 0 && count > 0)
        book = detail::stack_entries(columns.middleCols(begin, count), own, part.tile_outputs, entries, o,
                                     2 * begin + stages, executor);
      part.codebooks.insert(part.codebooks.begin() + r * (stages + 1) + stages, std::move(book));
    }
  };
  if (o.outliers > 0) add_stage(codes.outliers, x, 0, o.outlier_codes);
  add_stage(codes.main, x, o.outliers, o.codes);
  const matrix<double> left = sweep_stacks(w, factor, codes, o.block, executor);
  if (o.residual_codes > 0) {
    add_stage(codes.main, left, o.outliers, o.residual_codes);
    sweep_stacks(w, factor, codes, o.block, executor);
  }
  return codes;
}

}  // namespace sluice::inline SLUICE_ISA
