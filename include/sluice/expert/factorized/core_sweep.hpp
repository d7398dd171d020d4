/// A matrix as a chain of cores, by sweeps of singular value decompositions.
///
///   A_1 = W, rows (r_1, c_1);   A_k [d_k r_k c_k, rest] = U diag(s) V^T:  T_k = U,  A_(k+1) = diag(s) V^T   T_n = A_n
///
/// Singular values past a bond are left out, smallest first: with full bonds the chain is W up to rounding, with fewer
/// nearly the best that they hold. A bond larger than the rank has zeros. assign_matrix gives all experts of a chain
/// the same cores, which is where MPOE starts from a dense network. Work grows with the square of the largest bond
/// times the size of W: a conversion, not a step of training. In double throughout. Oseledets 2011, "Tensor-Train
/// Decomposition"; Gao et al. 2022 (MPOE), arXiv:2203.01104.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/expert/factorized/core_chain.hpp>
#include <sluice/kernel/small_svd.hpp>

#include <span>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// Cores [d_k, r_k c_k d_(k+1)] of W [rows, columns]. Throws std::invalid_argument if the factors are not W's.
inline std::vector<matrix<double>> swept_cores(const matrix<double>& w, std::span<const index_t> rows,
                                               std::span<const index_t> columns, std::span<const index_t> bonds) {
  if (rows.empty() || columns.size() != rows.size() || bonds.size() != rows.size() + 1 ||
      detail::product_of(rows) != w.rows() || detail::product_of(columns) != w.cols())
    throw_invalid("a matrix [", w.rows(), ", ", w.cols(), "] has no chain of ", rows.size(), " and ", columns.size(),
                  " factors with ", bonds.size(), " bonds");
  // Digits (r_1, c_1, r_2, c_2, ..) instead of (r_1, r_2, .., c_1, c_2, ..).
  matrix<double> rest(1, w.size());
  for (index_t i = 0; i < w.rows(); ++i)
    for (index_t j = 0; j < w.cols(); ++j) {
      index_t place = 0, r = i, c = j, weight = 1;
      for (std::size_t k = rows.size(); k-- > 0;) {
        place += (r % rows[k] * columns[k] + c % columns[k]) * weight;
        weight *= rows[k] * columns[k];
        r /= rows[k], c /= columns[k];
      }
      rest(0, place) = w(i, j);
    }
  std::vector<matrix<double>> cores;
  for (std::size_t k = 0; k + 1 < rows.size(); ++k) {
    const index_t height = bonds[k] * rows[k] * columns[k], width = rest.size() / height, next = bonds[k + 1];
    const const_matrix_map<double> a(rest.data(), height, width);
    const bool tall = height >= width;  // columns are what is turned
    const kernel::small_svd svd(tall ? matrix<double>(a) : matrix<double>(a.transpose()));
    const matrix<double>& left = tall ? svd.u : svd.v;
    const matrix<double>& right = tall ? svd.v : svd.u;
    matrix<double> core = matrix<double>::Zero(height, next), after = matrix<double>::Zero(next, width);
    for (index_t b = 0; b < (std::min)({next, height, width}); ++b) {
      core.col(b) = left.col(b);
      after.row(b) = svd.s(b, 0) * right.col(b).transpose();
    }
    core.resize(bonds[k], rows[k] * columns[k] * next);
    cores.push_back(core);
    rest = after;
  }
  rest.resize(bonds[rows.size() - 1], rows.back() * columns.back());
  cores.push_back(rest);
  return cores;
}

/// Every expert's matrix becomes W, as far as the bonds of the chain hold it.
template <FloatOrDouble Scalar>
void assign_matrix(core_chain<Scalar>& chain, const matrix<Scalar>& w) {
  const auto cores = swept_cores(w.template cast<double>(), chain.row_factors(), chain.column_factors(), chain.bonds());
  for (std::size_t k = 0; k < cores.size(); ++k)
    for (index_t e = 0; e < (k == chain.centre() ? 1 : chain.experts()); ++e)
      for (index_t i = 0; i < cores[k].size(); ++i) chain.core_of(k, e)[i] = static_cast<Scalar>(cores[k].data()[i]);
}

}  // namespace sluice::inline SLUICE_ISA
