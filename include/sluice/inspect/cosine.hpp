/// How alike two directions are: the cosine, and the angle between them as a part of a half turn.
///
///   cosine(a, b)    = a . b / (|a| |b|)                                      -1 .. 1
///   angular(a, b)   = 1 - arccos(cosine) / pi                                 0 .. 1:  1 -> 1, 0 -> .5, -1 -> 0
///
/// Rows of two matrices of one width are compared, each with each. Of a vector of zeros the cosine is 0 and the angular
/// similarity .5, with itself too: it has no direction, and stands at right angles to all. A vector that holds NaN or
/// infinity gives NaN. Everything is in double; |a| may be as large or small as a double. The angle comes from |u - v|
/// and |u + v| of unit vectors, for arccos of a cosine near 1 has lost half of its digits.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/types.hpp>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// Every row at length 1; of zeros a row of zeros, of what is not finite a row of NaN.
template <typename Rows>
matrix<double> directions(const Rows& rows) {
  matrix<double> u = rows.template cast<double>();
  for (index_t i = 0; i < u.rows(); ++i) {
    if (!all_finite(u.data() + i * u.cols(), u.cols())) {
      u.row(i).setConstant(quiet_nan<double>());
      continue;
    }
    const double largest = u.cols() == 0 ? 0 : u.row(i).cwiseAbs().maxCoeff();
    if (largest == 0) continue;
    u.row(i) /= largest;  // squares neither overflow nor vanish
    u.row(i) /= u.row(i).norm();
  }
  return u;
}

/// Of rows that directions made.
inline double unit_cosine(const matrix<double>& a, index_t i, const matrix<double>& b, index_t j) {
  if (any_nan(a.data() + i * a.cols(), a.cols()) || any_nan(b.data() + j * b.cols(), b.cols()))
    return quiet_nan<double>();
  return (std::clamp)(a.row(i).dot(b.row(j)), -1.0, 1.0);
}

inline double unit_angular(const matrix<double>& a, index_t i, const matrix<double>& b, index_t j) {
  if (any_nan(a.data() + i * a.cols(), a.cols()) || any_nan(b.data() + j * b.cols(), b.cols()))
    return quiet_nan<double>();
  const double apart = (a.row(i) - b.row(j)).norm(), together = (a.row(i) + b.row(j)).norm();
  if (apart == 0 && together == 0) return 0.5;  // both are zero
  return 1 - 2 * std::atan2(apart, together) / std::numbers::pi;
}

}  // namespace detail

/// [n,m] of rows a [n,F] with rows b [m,F]. Throws std::invalid_argument if widths differ.
template <typename A, typename B>
matrix<double> row_cosines(const A& a, const B& b) {
  if (a.cols() != b.cols()) throw_invalid("rows of ", a.cols(), " and of ", b.cols(), " numbers have no cosine");
  const matrix<double> u = detail::directions(a), v = detail::directions(b);
  matrix<double> cosines = u * v.transpose();
  for (index_t i = 0; i < cosines.rows(); ++i)
    for (index_t j = 0; j < cosines.cols(); ++j) {
      const bool is_number = u.cols() == 0 || (!is_nan(u(i, 0)) && !is_nan(v(j, 0)));
      cosines(i, j) = is_number ? (std::clamp)(cosines(i, j), -1.0, 1.0) : quiet_nan<double>();
    }
  return cosines;
}

/// [n,n] of rows with each other: symmetric, and 1 on the diagonal but for rows of zeros or NaN.
template <typename A>
matrix<double> row_cosines(const A& a) {
  matrix<double> cosines = row_cosines(a, a);
  for (index_t i = 0; i < cosines.rows(); ++i) {
    if (is_above(cosines(i, i), 0.5)) cosines(i, i) = 1;
    for (index_t j = 0; j < i; ++j) cosines(j, i) = cosines(i, j);
  }
  return cosines;
}

}  // namespace sluice::inline SLUICE_ISA
