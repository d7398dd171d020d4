/// A matrix as a product of thin ones and rows that are left over, which training prunes (MC-SMoE, after LoSparse).
///
///   W [out,in] = L R + S;  SVD W = U diag(s) V^T:  L = U_r sqrt(s_r) [out,r], R = sqrt(s_r) V_r^T [r,in], S = W - L R
///   r = ceil(share out in / (out + in)) for a share of the matrix's numbers: rank_for
///
///   row_pruning, over the S of all matrices, once a step t = 0, 1, ..:
///     average <- decay average + (1 - decay) importance;  importance <- |S dS|     so the average lags a step
///     keep v(t): 1 until ti = initial, `keep` after total - tf (final), between them
///       keep + (1 - keep) (1 - (t - ti) / (total - ti - tf))^3
///     once t > ti: a row's score is its mean average; rows below the int(n (1 - v))-th smallest of all n numbers'
///       scores, rounded to float, are zeroed
///
/// A row that is all zero is pruned; one that merely adds up to zero is not. Throws std::invalid_argument for shapes
/// that do not fit. Sums are in double, row by row: equal bits always. Li et al. 2023, "Merge, Then Compress",
/// arXiv:2310.01334; Li et al. 2023 (LoSparse), arXiv:2306.11222.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/types.hpp>
#include <sluice/kernel/small_svd.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// The rank whose two matrices have about `share` of the numbers of one [out,in].
inline index_t rank_for(index_t outputs, index_t inputs, double share) {
  if (outputs < 1 || inputs < 1 || !is_above(share, 0.0))
    throw_invalid("a matrix [", outputs, ", ", inputs, "] has no rank for a share of ", share);
  const auto o = static_cast<double>(outputs), i = static_cast<double>(inputs);
  return (std::min)(static_cast<index_t>(std::ceil(share * o * i / (o + i))), (std::min)(outputs, inputs));
}

template <FloatOrDouble Scalar>
struct low_rank_sparse {
  matrix<Scalar> left;    ///< [out,r]
  matrix<Scalar> right;   ///< [r,in]
  matrix<Scalar> sparse;  ///< [out,in]

  matrix<Scalar> low_rank() const { return left * right; }
  matrix<Scalar> to_matrix() const { return left * right + sparse; }
  /// Rows of S with a number other than zero.
  std::vector<index_t> alive_rows() const {
    std::vector<index_t> rows;
    for (index_t r = 0; r < sparse.rows(); ++r)
      if (!sparse.row(r).isZero(0)) rows.push_back(r);
    return rows;
  }
};

/// Throws std::invalid_argument unless 1 <= r <= min(out, in).
template <FloatOrDouble Scalar>
low_rank_sparse<Scalar> split_low_rank(tokens_in<Scalar> w, index_t rank) {
  if (rank < 1 || rank > (std::min)(w.rows(), w.cols()))
    throw_invalid("a matrix [", w.rows(), ", ", w.cols(), "] has no rank ", rank);
  const bool is_wide = w.rows() < w.cols();
  const matrix<double> m = w.template cast<double>(), tall = is_wide ? matrix<double>(m.transpose()) : m;
  const kernel::small_svd svd(tall);
  const matrix<double> roots = svd.s.topRows(rank).cwiseSqrt();
  const matrix<double> u = svd.u.leftCols(rank) * roots.col(0).asDiagonal(),
                       v = svd.v.leftCols(rank) * roots.col(0).asDiagonal();
  const matrix<double>&left = is_wide ? v : u, &right = is_wide ? u : v;
  const matrix<double> rest = m - left * right.transpose();
  return {left.template cast<Scalar>(), right.transpose().template cast<Scalar>(), rest.template cast<Scalar>()};
}

struct row_pruning_options {
  double keep = 0.1;  ///< of the numbers, in the end
  double decay = 0.85;
  index_t total = 0;    ///< steps
  index_t initial = 0;  ///< steps before anything is pruned
  index_t final = 0;    ///< steps at the end whose share stays
};

template <FloatOrDouble Scalar>
class row_pruning {
public:
  /// Throws std::invalid_argument unless 0 < keep <= 1, 0 <= decay < 1 and initial + final < total.
  explicit row_pruning(row_pruning_options o) : options_(o) {
    if (!is_above(o.keep, 0.0) || o.keep > 1 || !is_between(o.decay, 0, 1) || o.decay == 1 || o.initial < 0 ||
        o.final < 0 || o.initial + o.final >= o.total)
      throw_invalid("pruning needs a share in (0, 1], a decay in [0, 1) and fewer than ", o.total,
                    " steps around it, not ", o.keep, ", ", o.decay, ", ", o.initial, " and ", o.final);
  }

  double share_at(index_t step) const {
    const row_pruning_options& o = options_;
    if (step <= o.initial) return 1;
    if (step > o.total - o.final) return o.keep;
    const double rest = 1 - static_cast<double>(step - o.initial) / static_cast<double>(o.total - o.initial - o.final);
    return o.keep + (1 - o.keep) * rest * rest * rest;
  }

  /// One step: S of every matrix, and its gradient; rows are zeroed. The matrices are the same ones at every step.
  void step(const std::vector<matrix<Scalar>*>& sparse, const std::vector<const matrix<Scalar>*>& gradients) {
    validate(sparse, gradients);
    for (std::size_t m = 0; m < sparse.size(); ++m) {
      average_[m] = options_.decay * average_[m] + (1 - options_.decay) * importance_[m];
      importance_[m] =
          sparse[m]->template cast<double>().cwiseProduct(gradients[m]->template cast<double>()).cwiseAbs();
    }
    const index_t now = step_++;
    if (now > options_.initial) prune(sparse, share_at(now));
  }

  index_t steps() const noexcept { return step_; }
  /// Of every row of a matrix: what decides.
  std::vector<double> scores(std::size_t of) const {
    std::vector<double> means;
    for (index_t r = 0; r < average_[of].rows(); ++r) means.push_back(average_[of].row(r).mean());
    return means;
  }

private:
  void validate(const std::vector<matrix<Scalar>*>& sparse, const std::vector<const matrix<Scalar>*>& gradients) {
    if (step_ == 0 && average_.empty())
      for (const matrix<Scalar>* s : sparse) {
        average_.push_back(matrix<double>::Zero(s->rows(), s->cols()));
        importance_.push_back(average_.back());
      }
    bool fits = sparse.size() == average_.size() && gradients.size() == sparse.size();
    for (std::size_t m = 0; m < sparse.size() && fits; ++m)
      fits = sparse[m]->rows() == average_[m].rows() && sparse[m]->cols() == average_[m].cols() &&
             gradients[m]->rows() == average_[m].rows() && gradients[m]->cols() == average_[m].cols();
    if (!fits)
      throw_invalid("pruning began with ", average_.size(), " matrices and cannot go on with ", sparse.size(), " and ",
                    gradients.size(), " gradients, or those of other shapes");
  }

  void prune(const std::vector<matrix<Scalar>*>& sparse, double share) const {
    std::vector<double> pooled;  // the score of every number
    for (std::size_t m = 0; m < sparse.size(); ++m)
      for (const double score : scores(m)) pooled.insert(pooled.end(), as_size(sparse[m]->cols()), score);
    const auto place = static_cast<index_t>(static_cast<double>(pooled.size()) * (1 - share));
    if (place < 1) return;
    std::nth_element(pooled.begin(), pooled.begin() + place - 1, pooled.end());
    // In float, as the authors' program has it: whether the row that is the threshold stays depends on that rounding.
    const auto threshold = static_cast<double>(static_cast<float>(pooled[as_size(place - 1)]));
    for (std::size_t m = 0; m < sparse.size(); ++m) {
      const std::vector<double> of_rows = scores(m);
      for (index_t r = 0; r < sparse[m]->rows(); ++r)
        if (of_rows[as_size(r)] < threshold) sparse[m]->row(r).setZero();
    }
  }

  row_pruning_options options_;
  index_t step_ = 0;
  std::vector<matrix<double>> average_, importance_;
};

}  // namespace sluice::inline SLUICE_ISA
