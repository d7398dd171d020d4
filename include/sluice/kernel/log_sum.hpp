/// The logarithm of a weighted sum of exponentials down the columns of some rows, forward and backward.
///
///   y[c] = log of the sum over j of w[j] exp(row_j[c])
///   drow_j[c] = dy[c] s[j,c],  dw[j] = sum over c of dy[c] s[j,c] / w[j]      s[j,c] = w[j] exp(row_j[c]) / exp(y[c])
///
/// The maximum of a column is subtracted first, so nothing overflows; infinities share its mass. A weight of exactly 0
/// leaves its row out: drow is zero, dw is what a first bit of weight would do. Weights must not be negative. Without
/// rows that count y is `of_none` and has no gradient. NaN in a row gives NaN in its columns. Nothing past a row is
/// read or written, and sums go in the order of the rows and columns.
#pragma once

#include <sluice/kernel/logarithm.hpp>
#include <sluice/kernel/softmax.hpp>

#include <algorithm>

namespace sluice::inline SLUICE_ISA::kernel {

namespace detail {

/// The columns c .. c + lanes of rows, and what their maximum makes of them.
template <typename Scalar, typename RowOf, typename WeightOf>
class log_sum_columns {
public:
  log_sum_columns(index_t rows, const RowOf& row, const WeightOf& weight, index_t column, index_t lanes)
      : row_(row), column_(column), lanes_(lanes) {
    for (index_t j = 0; j < rows; ++j)
      if (weight(j) != Scalar(0)) top_ = (xsimd::max)(top_, order_keys<Scalar>(load_columns(row(j))));
    maximum_ = numbers_of_keys<Scalar>(top_);
    for (index_t j = 0; j < rows; ++j)
      if (weight(j) != Scalar(0)) sum_ += simd<Scalar>(weight(j)) * power(j);
  }

  simd<Scalar> load_columns(const Scalar* row) const {
    return lanes_ == simd_width<Scalar> ? load(row + column_) : load_part(row + column_, lanes_, Scalar(0));
  }
  void store_columns(Scalar* row, const simd<Scalar>& v) const {
    lanes_ == simd_width<Scalar> ? store<Scalar>(row + column_, v) : store_part<Scalar>(row + column_, v, lanes_);
  }
  /// exp(row_j - maximum)
  simd<Scalar> power(index_t j) const { return exponential<Scalar>(load_columns(row_(j)), top_, maximum_); }
  const simd<Scalar>& sum() const { return sum_; }
  simd<Scalar> value() const { return maximum_ + logarithm(sum_); }

private:
  const RowOf& row_;
  index_t column_, lanes_;
  simd_keys<Scalar> top_ = simd_keys<Scalar>(-infinity_key<Scalar>);
  simd<Scalar> maximum_ = simd<Scalar>(Scalar(0));
  simd<Scalar> sum_ = simd<Scalar>(Scalar(0));
};

template <typename WeightOf>
bool any_counts(index_t rows, const WeightOf& weight) {
  for (index_t j = 0; j < rows; ++j)
    if (weight(j) != 0) return true;
  return false;
}

}  // namespace detail

/// row(j) points to the numbers of row j, weight(j) is w[j].
template <typename Scalar, typename RowOf, typename WeightOf>
void log_sum(index_t rows, index_t columns, const RowOf& row, const WeightOf& weight, Scalar of_none, Scalar* y) {
  if (!detail::any_counts(rows, weight)) {
    std::fill_n(y, columns, of_none);
    return;
  }
  constexpr index_t width = simd_width<Scalar>;
  for (index_t c = 0; c < columns; c += width) {
    const detail::log_sum_columns<Scalar, RowOf, WeightOf> own(rows, row, weight, c, (std::min)(width, columns - c));
    own.store_columns(y, own.value());
  }
}

/// Writes the rows drow(j), and adds into add_weight(j, gradient of w[j]).
template <typename Scalar, typename RowOf, typename WeightOf, typename DrowOf, typename AddWeight>
void log_sum_backward(index_t rows, index_t columns, const RowOf& row, const WeightOf& weight, const Scalar* dy,
                      const DrowOf& drow, const AddWeight& add_weight) {
  if (!detail::any_counts(rows, weight)) {
    for (index_t j = 0; j < rows; ++j) std::fill_n(drow(j), columns, Scalar(0));
    return;
  }
  constexpr index_t width = simd_width<Scalar>;
  for (index_t c = 0; c < columns; c += width) {
    const detail::log_sum_columns<Scalar, RowOf, WeightOf> own(rows, row, weight, c, (std::min)(width, columns - c));
    const simd<Scalar> pull = own.load_columns(dy) / own.sum();
    for (index_t j = 0; j < rows; ++j) {
      const Scalar w = weight(j);
      const simd<Scalar> share = pull * own.power(j);
      own.store_columns(drow(j), w == Scalar(0) ? simd<Scalar>(Scalar(0)) : share * simd<Scalar>(w));
      Scalar lanes[as_size(width)] = {};
      store_part<Scalar>(lanes, share, (std::min)(width, columns - c));
      add_weight(j, sum_lanes<Scalar>(load(lanes)));
    }
  }
}

}  // namespace sluice::inline SLUICE_ISA::kernel
