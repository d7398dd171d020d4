/// A rotation of vectors after which a product of codebooks loses less: OPQ, codes and rotation in turns.
///
///   learn_rotation(codes, x, random)       begins with what codes.rotation() is; in every round
///     v = x R^T      codes of every part: k-means of v, from where they are      q [T,P] the nearest codes of v, side by side
///     R = U V^T,     U S V^T = the singular vectors of sum over t of q_t x_t^T
///
/// R is the best of all [P,D] with orthonormal columns for the q of the round, and k-means the best for R, so that the
/// error does not grow; at the end codes are fitted to the last R, and the mean of |v - q|^2 comes back. Parts share
/// what varies, and vary less together. Directions in which nothing varies are turned to whatever is orthogonal to the
/// rest. Vectors that hold NaN have no part. Equal bits for every executor. A round costs k-means, 2 T P D and, by
/// Jacobi rotations, some 100 P D^2 operations: a moment for a hundred numbers, minutes for a thousand.
/// Ge, He, Ke, Sun 2013, "Optimized Product Quantization for Approximate Nearest Neighbor Search", section 3.1.
#pragma once

#include <sluice/codebook/kmeans.hpp>
#include <sluice/codebook/search/product_codes.hpp>
#include <sluice/kernel/gemm.hpp>
#include <sluice/kernel/small_svd.hpp>

#include <vector>

namespace sluice::inline SLUICE_ISA {

struct rotation_options {
  index_t rounds = 20;
  kmeans_options codes{.rounds = 4};  ///< of a round
};

namespace detail {

/// U V^T of A = U S V^T, its columns orthonormal even where A has fewer directions.
inline matrix<double> nearest_rotation(const matrix<double>& a) {
  kernel::small_svd svd(a);
  const index_t n = a.cols();
  for (index_t c = 0; c < n; ++c) {
    if (svd.s(c, 0) > 1e-12 * svd.s(0, 0)) continue;
    // Of the axes, the one that is farthest from the columns so far, without what it shares with them.
    Eigen::VectorXd best = Eigen::VectorXd::Zero(a.rows());
    for (index_t axis = 0; axis < a.rows(); ++axis) {
      Eigen::VectorXd left = Eigen::VectorXd::Unit(a.rows(), axis);
      for (int again = 0; again < 2; ++again) left -= svd.u.leftCols(c) * (svd.u.leftCols(c).transpose() * left);
      if (left.squaredNorm() > best.squaredNorm()) best = left;
    }
    svd.u.col(c) = best.normalized();
  }
  return svd.u * svd.v.transpose();
}

}  // namespace detail

/// Throws std::invalid_argument unless the codes have a rotation, x [T,D] is of their width and rounds >= 0.
template <FloatOrDouble Scalar>
double learn_rotation(product_codes<Scalar>& codes, tokens_in<Scalar> x, const random_source& random,
                      const rotation_options& o = {}, const executor_ref& executor = {}) {
  if (!codes.has_rotation() || o.rounds < 0)
    throw_invalid("learn_rotation needs codes with a rotation and rounds >= 0, not ", o.rounds);
  const index_t P = codes.rotated_width(), D = codes.inputs(), part = codes.part_width();
  typename product_codes<Scalar>::workspace ws;
  std::vector<kmeans<Scalar>> clusters(as_size(codes.parts()), kmeans<Scalar>(codes.codes(), part, o.codes));
  matrix<index_t> ids(x.rows(), codes.parts());
  matrix<Scalar> kept = x, rows, q(x.rows(), P), correlation(P, D);
  for (index_t t = 0; t < x.rows(); ++t)
    if (any_nan(x.data() + t * x.outerStride(), D)) kept.row(t).setZero();
  // Rows as the parts see them, codes fitted to them, and the codes of the rows.
  const auto fit = [&](bool begins) {
    rows = codes.rotate(x, ws, executor);
    for (index_t m = 0; m < codes.parts(); ++m) {
      kmeans<Scalar>& own = clusters[as_size(m)];
      const auto seen = rows.middleCols(m * part, part);
      if (begins) own.begin(seen, random_rows{random.split(m)}, executor);
      own.fit(seen, executor);
      std::copy_n(own.table().data(), own.table().size(), codes.table().data() + m * own.table().size());
    }
    codes.encode_rotated(rows, ids, ws, executor);
    codes.decode_rotated(ids, q);
  };
  fit(true);
  for (index_t round = 0; round < o.rounds; ++round) {
    executor.parallel_blocks(P, 32, x.rows() * D / 4, [&](index_t begin, index_t end) {
      kernel::multiply_tn(end - begin, D, x.rows(), q.data() + begin, P, std::as_const(kept).data(), D,
                          correlation.data() + begin * D, D);
    });
    codes.rotation().assign(detail::nearest_rotation(correlation.template cast<double>()).template cast<Scalar>());
    fit(false);
  }
  double error = 0;
  index_t counted = 0;
  for (index_t t = 0; t < x.rows(); ++t) {
    if (ids(t, 0) == no_code) continue;
    error += static_cast<double>(kernel::squared_difference(rows.data() + t * P, std::as_const(q).data() + t * P, P));
    ++counted;
  }
  return counted == 0 ? 0 : error / static_cast<double>(counted);
}

}  // namespace sluice::inline SLUICE_ISA
