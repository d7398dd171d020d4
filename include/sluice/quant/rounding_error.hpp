/// How far rounding moves a matrix, and its outputs on the inputs that were seen.
///
///   weights = |w - q| / |w|     outputs = sqrt(tr((w - q) H (w - q)^T) / tr(w H w^T))     w, q [out, in], H [in, in]
///
/// outputs is |X (w - q)^T| / |X w^T| for the rows X that H is the sum of x x^T of (quant/input_moments.hpp). Where H
/// is zero, or nothing comes out of w, it is that of H = I; where w is zero too, 0 if q is and infinity otherwise. In
/// double, in the order of the outputs: equal bits for any thread count. Throws std::invalid_argument for shapes that
/// do not fit.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/error.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/kernel/gemm.hpp>

#include <cmath>
#include <limits>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct rounding_error {
  double weights = 0;
  double outputs = 0;
};

namespace detail {

inline double relative_size(double change, double whole) noexcept {
  if (whole > 0) return std::sqrt((std::max)(0.0, change) / whole);
  return change > 0 ? std::numeric_limits<double>::infinity() : 0;
}

/// tr(w H w^T), rows of w one after the other.
template <typename RowsOf>
double weighed_square(index_t rows, const matrix<double>& h, const RowsOf& fill, const executor_ref& executor) {
  constexpr index_t block = 32;
  std::vector<double> sums(as_size(rows), 0.0);
  executor.parallel_blocks(rows, block, h.size() / 4, [&](index_t begin, index_t end) {
    matrix_buffer<double> w(end - begin, h.cols()), product(end - begin, h.cols());
    for (index_t r = begin; r < end; ++r) fill(r, w.row(r - begin));
    kernel::multiply_nn(end - begin, h.cols(), h.rows(), w.data(), w.cols(), h.data(), h.cols(), product.data(),
                        h.cols());
    for (index_t r = begin; r < end; ++r)
      sums[as_size(r)] = kernel::dot(w.row(r - begin), static_cast<const double*>(product.row(r - begin)), h.cols());
  });
  double sum = 0;
  for (const double row : sums) sum += row;
  return sum;
}

}  // namespace detail

inline rounding_error error_of_rounding(tokens_in<float> w, tokens_in<float> q, const matrix<double>& h,
                                        const executor_ref& executor = {}) {
  if (q.rows() != w.rows() || q.cols() != w.cols() || h.rows() != w.cols() || h.cols() != w.cols())
    throw_invalid("weights [", w.rows(), ", ", w.cols(), "], what they are rounded to [", q.rows(), ", ", q.cols(),
                  "] and second moments [", h.rows(), ", ", h.cols(), "] do not fit together");
  rounding_error error;
  error.weights = detail::relative_size((w - q).cast<double>().squaredNorm(), w.cast<double>().squaredNorm());
  const auto row_of = [&](auto at) {
    return [at, &h](index_t r, double* to) {
      for (index_t c = 0; c < h.cols(); ++c) to[c] = at(r, c);
    };
  };
  const double whole = detail::weighed_square(
      w.rows(), h, row_of([&w](index_t r, index_t c) { return static_cast<double>(w(r, c)); }), executor);
  error.outputs = error.weights;
  if (whole > 0)
    error.outputs = detail::relative_size(detail::weighed_square(w.rows(), h, row_of([&](index_t r, index_t c) {
                                                                   return static_cast<double>(w(r, c)) -
                                                                          static_cast<double>(q(r, c));
                                                                 }),
                                                                 executor),
                                          whole);
  return error;
}

}  // namespace sluice::inline SLUICE_ISA
