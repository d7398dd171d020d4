/// Keeps the weights that a loss is most sensitive to as they are and rounds the others (GWQ).
///
///   outliers: the ceil(fraction out in) weights with the largest |gradient|, over the whole matrix
///   rest:     w with the outliers set to 0, rounded to codes by groups (quant/round_to_nearest.hpp)
///   w ~ rest + outliers
///
/// The gradient [out, in] is that of one backward pass over calibration tokens. Outliers are zeroed before scales are
/// found, so that they widen no range. Equal gradients: the first weight in row-major order; NaN counts as the
/// smallest. fraction 0 is plain rounding, 1 is exact. Throws std::invalid_argument for weights that have no code,
/// shapes that differ or a share outside 0 to 1. Empty matrices are valid. Equal bits for any thread count. Shao et al.
/// 2024, "GWQ: Gradient-Aware Weight Quantization for Large Language Models", arXiv:2411.00850, which keeps 1 %.
#pragma once

#include <sluice/kernel/format/sparse_weights.hpp>
#include <sluice/quant/round_to_nearest.hpp>

#include <cmath>
#include <numeric>

namespace sluice::inline SLUICE_ISA {

struct outlier_options {
  double fraction = 0.01;
  rounding_options rest = {};
};

struct outlier_codes {
  grouped_codes rest;
  sparse_weights outliers;

  matrix<float> to_matrix() const {
    matrix<float> w = rest.to_matrix();
    outliers.put_into(w);
    return w;
  }
};

namespace detail {

/// The row-major places of the count largest magnitudes, ascending.
inline std::vector<index_t> largest_places(tokens_in<float> values, index_t count) {
  std::vector<index_t> places(as_size(values.size()));
  std::iota(places.begin(), places.end(), index_t(0));
  const auto key = [&](index_t place) {
    const float& value = values(place / values.cols(), place % values.cols());
    return is_nan(value) ? -1 : bits_of(value) & (std::numeric_limits<std::int32_t>::max)();
  };
  const auto middle = places.begin() + count;
  std::nth_element(places.begin(), middle, places.end(),
                   [&](index_t a, index_t b) { return key(a) != key(b) ? key(a) > key(b) : a < b; });
  places.erase(middle, places.end());
  std::sort(places.begin(), places.end());
  return places;
}

}  // namespace detail

inline outlier_codes round_around_outliers(tokens_in<float> w, tokens_in<float> gradient, outlier_options o = {},
                                           const executor_ref& executor = {}) {
  if (gradient.rows() != w.rows() || gradient.cols() != w.cols())
    throw_invalid("weights [", w.rows(), ", ", w.cols(), "] have a gradient [", gradient.rows(), ", ", gradient.cols(),
                  "]");
  if (!is_between(o.fraction, 0.0, 1.0)) throw_invalid("the share of outliers is 0 to 1, not ", o.fraction);
  detail::check_finite_weights(w, executor);
  // Less than a unit in the last place of a product that should be whole must not make one more.
  const auto count = static_cast<index_t>(std::ceil(o.fraction * static_cast<double>(w.size()) * (1 - 1e-12)));
  outlier_codes out;
  out.outliers.inputs = w.cols();
  out.outliers.first.assign(as_size(w.rows() + 1), 0);
  matrix<float> rest = w;
  for (const index_t place : detail::largest_places(gradient, count)) {
    const index_t row = place / w.cols(), col = place % w.cols();
    out.outliers.input.push_back(static_cast<std::int32_t>(col));
    out.outliers.values.push_back(w(row, col));
    ++out.outliers.first[as_size(row + 1)];
    rest(row, col) = 0;
  }
  std::partial_sum(out.outliers.first.begin(), out.outliers.first.end(), out.outliers.first.begin());
  out.rest = round_to_nearest(rest, o.rest, executor);
  return out;
}

}  // namespace sluice::inline SLUICE_ISA
