/// Points of many dimensions as a picture: their principal components.
///
///   X [n,F]  columns centred, and divided by their deviation (n - 1) if wanted    X = U S V^T
///   coordinates [n,C] = U S of the C largest        share [C] = s_c^2 / sum of s^2: the part of all variance
///
/// Points are experts (a matrix each, in a row: flattened) or units (all_units: those of all experts, one below the
/// other). The eigenvectors are those of X X^T or X^T X, whichever is smaller: n or F must be at most some thousands.
/// Of each component the coordinate of the largest size is positive (the first of them): signs are otherwise free.
/// Columns that are constant stay 0. Fewer than C components, or no variance: the rest of the coordinates is 0, shares
/// are 0. Numbers must be finite. The only header here that needs more of Eigen than its core.
/// Lo et al. 2024, arXiv:2406.18219, appendix, which scales columns.
#pragma once

#include <sluice/inspect/weight_similarity.hpp>

SLUICE_BEGIN_VECTOR_LIBRARY
#include <Eigen/Eigenvalues>
SLUICE_END_VECTOR_LIBRARY

#include <algorithm>
#include <cmath>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// [sum of H, D]: the units of all experts, one expert below the other. Throws std::invalid_argument if widths differ.
template <typename Scalar>
matrix<Scalar> all_units(const std::vector<matrix<Scalar>>& of) {
  detail::check_alike(of, false);
  index_t count = 0;
  for (const auto& m : of) count += m.rows();
  matrix<Scalar> units(count, of.empty() ? 0 : of[0].cols());
  index_t next = 0;
  for (const auto& m : of) {
    units.middleRows(next, m.rows()) = m;
    next += m.rows();
  }
  return units;
}

struct projection_options {
  index_t components = 2;
  bool unit_variance = true;  ///< columns are scaled
};

struct projected_points {
  matrix<double> coordinates;  ///< [n,C]
  std::vector<double> share;   ///< [C]
};

/// Throws std::invalid_argument unless C >= 1 and numbers are finite.
template <typename Scalar>
projected_points principal_components(const matrix<Scalar>& points, projection_options o = {}) {
  if (o.components < 1) throw_invalid("a projection needs components, not ", o.components);
  if (!all_finite(points.data(), points.size())) throw_invalid("points that are not finite have no projection");
  const index_t n = points.rows(), F = points.cols();
  projected_points made{matrix<double>::Zero(n, o.components), std::vector<double>(as_size(o.components), 0)};
  if (n < 2 || F < 1) return made;
  matrix<double> x = points.template cast<double>();
  x.rowwise() -= Eigen::RowVectorXd(x.colwise().mean());
  for (index_t f = 0; f < F && o.unit_variance; ++f) {
    const double deviation = std::sqrt(x.col(f).squaredNorm() / static_cast<double>(n - 1));
    // What is left of a constant column is rounding, which must not become a direction.
    const double size = (std::abs)(static_cast<double>(points(0, f))) * 1e-14;
    if (deviation > size)
      x.col(f) /= deviation;
    else
      x.col(f).setZero();
  }
  const bool by_points = n <= F;
  const Eigen::MatrixXd products = by_points ? Eigen::MatrixXd(x * x.transpose()) : Eigen::MatrixXd(x.transpose() * x);
  const double total = products.trace();
  if (!(total > 0)) return made;
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solved(products);  // ascending
  const index_t size = products.rows();
  for (index_t c = 0; c < (std::min)(o.components, size); ++c) {
    const double square = solved.eigenvalues()[size - 1 - c];
    if (!(square > 1e-14 * total)) break;
    const Eigen::VectorXd v = solved.eigenvectors().col(size - 1 - c);
    Eigen::VectorXd along = by_points ? Eigen::VectorXd(std::sqrt(square) * v) : Eigen::VectorXd(x * v);
    index_t largest = 0;
    for (index_t i = 1; i < n; ++i)
      if ((std::abs)(along[i]) > (std::abs)(along[largest]) * (1 + 1e-12)) largest = i;
    if (along[largest] < 0) along = -along;
    made.coordinates.col(c) = along;
    made.share[as_size(c)] = square / total;
  }
  return made;
}

}  // namespace sluice::inline SLUICE_ISA
