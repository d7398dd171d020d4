/// What a router made of soft selectors saw: k distributions over the experts and how they are mixed.
///
///   selectors [N, k·E]   r[n,i,e]: how much selector i picks expert e; need not sum to 1 over e
///   mixing    [N, k]     alpha[n,i], sums to 1 over i; the weight of expert e is sum over i of alpha[n,i] r[n,i,e]
///   counted   [N]        1 where losses see the row, 0 for padding and for rows that held NaN
///
/// N is T, or 1 where all tokens share the selectors. A loss adds its gradient to the matching array of
/// selector_gradients.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/types.hpp>

#include <concepts>
#include <cstdint>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
struct selector_signals {
  index_t experts = 0;
  matrix_buffer<Scalar> selectors;
  matrix_buffer<Scalar> mixing;
  buffer<std::uint8_t> counted;

  index_t rows() const noexcept { return mixing.rows(); }
  index_t count() const noexcept { return mixing.cols(); }
  /// The E numbers of selector i in row n.
  const Scalar* selector(index_t n, index_t i) const noexcept { return selectors.row(n) + i * experts; }
  Scalar* selector(index_t n, index_t i) noexcept { return selectors.row(n) + i * experts; }
};

template <FloatOrDouble Scalar>
struct selector_gradients {
  matrix_buffer<Scalar> selectors;
  matrix_buffer<Scalar> mixing;

  /// Memory of losses, so that a warm evaluation allocates nothing; what it holds means nothing between calls.
  buffer<double> row_scratch;

  void zero_like(const selector_signals<Scalar>& seen) {
    selectors.set_zero(seen.selectors.rows(), seen.selectors.cols());
    mixing.set_zero(seen.mixing.rows(), seen.mixing.cols());
  }
};

}  // namespace sluice::inline SLUICE_ISA
