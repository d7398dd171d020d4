/// Whether a router tells apart the experts whose weights are apart.
///
///   x    similarities of the experts' weights, e > f:  mean_unit_similarity, say       y    cosines of router rows
///   y = slope x + intercept by least squares;   squared_correlation = Pearson's r squared
///
/// The paper's finding: the largest is that with the matrix before the activation (gate), as though units were experts
/// of their own. Averages over layers are the caller's. It has to be another line than that of a constant: where x or y
/// are, or fewer than two pairs are there (E < 3), what is not determined is NaN; so is all if a similarity is.
/// Lo et al. 2024, arXiv:2406.18219, section 4.2.
#pragma once

#include <sluice/inspect/cosine.hpp>

namespace sluice::inline SLUICE_ISA {

struct similarity_line {
  double slope, intercept, squared_correlation;
};

/// Of what is below the diagonals. Throws std::invalid_argument unless both are [E,E].
inline similarity_line line_through_similarities(const matrix<double>& x, const matrix<double>& y) {
  if (x.rows() != x.cols() || y.rows() != x.rows() || y.cols() != x.cols())
    throw_invalid("similarities [", x.rows(), ", ", x.cols(), "] and [", y.rows(), ", ", y.cols(),
                  "] are not those of the same experts");
  const double nan = quiet_nan<double>();
  double pairs = 0, mean_x = 0, mean_y = 0;
  for (index_t e = 0; e < x.rows(); ++e)
    for (index_t f = 0; f < e; ++f) {
      if (!is_finite(x(e, f)) || !is_finite(y(e, f))) return {nan, nan, nan};
      pairs += 1;
      mean_x += x(e, f);
      mean_y += y(e, f);
    }
  if (pairs < 2) return {nan, nan, nan};
  mean_x /= pairs;
  mean_y /= pairs;
  double xx = 0, xy = 0, yy = 0;
  for (index_t e = 0; e < x.rows(); ++e)
    for (index_t f = 0; f < e; ++f) {
      const double dx = x(e, f) - mean_x, dy = y(e, f) - mean_y;
      xx += dx * dx;
      xy += dx * dy;
      yy += dy * dy;
    }
  if (xx == 0) return {nan, nan, nan};
  const double slope = xy / xx;
  return {slope, mean_y - slope * mean_x, yy == 0 ? nan : (std::min)(xy * xy / (xx * yy), 1.0)};
}

/// Of a router's rows [E,D] (linear_gate::weight().to_matrix()) with the similarity of experts [E,E].
template <typename Scalar>
similarity_line router_agreement(const matrix<Scalar>& rows, const matrix<double>& expert_similarity) {
  return line_through_similarities(expert_similarity, row_cosines(rows));
}

}  // namespace sluice::inline SLUICE_ISA
