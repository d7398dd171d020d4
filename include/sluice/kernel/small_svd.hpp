/// Singular values and vectors of a matrix of a few rows: one-sided Jacobi rotations.
///
///   A [n,n] = U diag(s) V^T,  s descending
///
/// Columns of A V are turned against each other until all are orthogonal: no library, exact to a few units in the last
/// place, for n up to a dozen. A singular value of 0 has a column of zeros in U. Demmel and Veselic 1992, "Jacobi's
/// method is more accurate than QR".
#pragma once

#include <sluice/core/types.hpp>

#include <algorithm>
#include <cmath>

namespace sluice::inline SLUICE_ISA::kernel {

struct small_svd {
  matrix<double> u, v;  ///< columns are the vectors
  matrix<double> s;     ///< [n,1]

  explicit small_svd(const matrix<double>& a) : u(a), v(matrix<double>::Identity(a.cols(), a.cols())), s(a.cols(), 1) {
    const index_t n = a.cols();
    constexpr int most_sweeps = 60;
    for (int sweep = 0; sweep < most_sweeps; ++sweep) {
      bool turned = false;
      for (index_t p = 0; p < n; ++p)
        for (index_t q = p + 1; q < n; ++q) turned |= turn(p, q);
      if (!turned) break;
    }
    for (index_t c = 0; c < n; ++c) {
      s(c, 0) = u.col(c).norm();
      if (s(c, 0) > 0) u.col(c) /= s(c, 0);
    }
    for (index_t c = 0; c < n; ++c) {
      index_t best = c;
      for (index_t other = c + 1; other < n; ++other)
        if (s(other, 0) > s(best, 0)) best = other;
      if (best == c) continue;
      std::swap(s(c, 0), s(best, 0));
      u.col(c).swap(u.col(best));
      v.col(c).swap(v.col(best));
    }
  }

private:
  /// Makes two columns orthogonal; false if they are.
  bool turn(index_t p, index_t q) {
    const double pp = u.col(p).squaredNorm(), qq = u.col(q).squaredNorm(), pq = u.col(p).dot(u.col(q));
    if (!((std::abs)(pq) > 1e-16 * std::sqrt(pp * qq))) return false;
    const double zeta = (qq - pp) / (2 * pq);
    const double t = (zeta < 0 ? -1 : 1) / ((std::abs)(zeta) + std::sqrt(1 + zeta * zeta));
    const double cosine = 1 / std::sqrt(1 + t * t), sine = cosine * t;
    for (auto* m : {&u, &v})
      for (index_t r = 0; r < m->rows(); ++r) {
        const double a = (*m)(r, p), b = (*m)(r, q);
        (*m)(r, p) = cosine * a - sine * b;
        (*m)(r, q) = sine * a + cosine * b;
      }
    return true;
  }
};

}  // namespace sluice::inline SLUICE_ISA::kernel
