/// A matrix as a sum of Kronecker products of small matrices and thin ones.
///
///   H [I,O] = sum over i < N of S_i (x) (L_i R_i)      rule S [N,N,N]  left L [N,I/N,R]  right R [N,R,O/N]
///   H[a I/N + c, b O/N + d] += S_i[a,b] (L_i R_i)[c,d]
///   dS_i[a,b] = <dH block a,b, L_i R_i>;   dM_i = sum over a, b of S_i[a,b] dH block a,b
///   dL_i = dM_i R_i^T;   dR_i = L_i^T dM_i
///
/// Arrays are row-major. Making H costs N I O operations more than reading it, which is little beside a product of many
/// rows with it: y = x H. With N = 1 and S = 1 it is a plain low-rank matrix. Zhang et al. 2021, arXiv:2102.08597 (PHM
/// layers); Karimi Mahabadi et al. 2021, arXiv:2106.04647 (low-rank ones, Compacter).
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/error.hpp>
#include <sluice/kernel/gemm.hpp>

namespace sluice::inline SLUICE_ISA {

struct kronecker_shape {
  index_t terms = 1;    ///< N
  index_t inputs = 1;   ///< I
  index_t outputs = 1;  ///< O
  index_t rank = 1;     ///< R

  index_t rows() const noexcept { return inputs / terms; }
  index_t cols() const noexcept { return outputs / terms; }
  index_t left_size() const noexcept { return inputs * rank; }
  index_t right_size() const noexcept { return rank * outputs; }

  /// Throws std::invalid_argument unless all are at least 1 and N divides both widths.
  void validate() const {
    if (terms < 1 || inputs < 1 || outputs < 1 || rank < 1 || inputs % terms != 0 || outputs % terms != 0)
      throw_invalid("a sum of N Kronecker products needs N, R >= 1 and widths that N divides, not N = ", terms,
                    ", R = ", rank, ", ", inputs, " -> ", outputs);
  }
};

/// The factors of one such matrix, or their gradients.
template <typename Number>
struct kronecker_factors {
  Number* rule;
  Number* left;
  Number* right;
};

/// sum += factor * H.
template <FloatOrDouble Scalar>
void add_kronecker_sum(const kronecker_shape& shape, const kronecker_factors<const Scalar>& of, Scalar factor,
                       Scalar* sum, buffer<Scalar>& scratch) {
  const index_t n = shape.terms, rows = shape.rows(), cols = shape.cols(), rank = shape.rank;
  scratch.resize(rows * cols);
  for (index_t i = 0; i < n; ++i) {
    kernel::multiply_nn(rows, cols, rank, of.left + i * rows * rank, rank, of.right + i * rank * cols, cols,
                        scratch.data(), cols);
    for (index_t a = 0; a < n; ++a)
      for (index_t c = 0; c < rows; ++c)
        for (index_t b = 0; b < n; ++b)
          kernel::add_scaled(factor * of.rule[(i * n + a) * n + b], scratch.data() + c * cols,
                             sum + (a * rows + c) * shape.outputs + b * cols, cols);
  }
}

/// Adds the gradients of factor * H, given dsum of the sum.
template <FloatOrDouble Scalar>
void add_kronecker_gradients(const kronecker_shape& shape, const kronecker_factors<const Scalar>& of, Scalar factor,
                             const Scalar* dsum, const kronecker_factors<Scalar>& gradients, buffer<Scalar>& scratch) {
  const index_t n = shape.terms, rows = shape.rows(), cols = shape.cols(), rank = shape.rank;
  scratch.resize(2 * rows * cols);
  Scalar* const product = scratch.data();
  Scalar* const dproduct = product + rows * cols;
  for (index_t i = 0; i < n; ++i) {
    const Scalar* const left = of.left + i * rows * rank;
    const Scalar* const right = of.right + i * rank * cols;
    kernel::multiply_nn(rows, cols, rank, left, rank, right, cols, product, cols);
    std::fill_n(dproduct, rows * cols, Scalar(0));
    for (index_t a = 0; a < n; ++a)
      for (index_t b = 0; b < n; ++b) {
        const index_t place = (i * n + a) * n + b;
        Scalar inner = 0;
        for (index_t c = 0; c < rows; ++c) {
          const Scalar* const block = dsum + (a * rows + c) * shape.outputs + b * cols;
          inner += kernel::dot(block, product + c * cols, cols);
          kernel::add_scaled(factor * of.rule[place], block, dproduct + c * cols, cols);
        }
        gradients.rule[place] += factor * inner;
      }
    kernel::multiply_nt(rows, rank, cols, dproduct, cols, right, cols, gradients.left + i * rows * rank, rank,
                        kernel::write::accumulate);
    kernel::multiply_tn(rank, cols, rows, left, rank, dproduct, cols, gradients.right + i * rank * cols, cols,
                        kernel::write::accumulate);
  }
}

}  // namespace sluice::inline SLUICE_ISA
