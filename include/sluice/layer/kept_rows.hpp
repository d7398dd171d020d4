/// What a layer of plain linear algebra keeps of x [T,D] for backward: a copy in which rows that must not count are
/// zero.
///
/// Padding may hold anything, and a token with NaN gets NaN out. Neither may reach a sum over tokens, such as the
/// gradient of a weight, where 0 * NaN is NaN: their rows of x are kept as zeros, and their rows of dy are read as
/// zeros.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/context.hpp>
#include <sluice/core/numeric.hpp>

#include <algorithm>
#include <cstdint>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// A copy of x without what padding holds, which may be NaN and must not reach the sums over tokens of a backward pass.
/// Tokens with NaN stay as they are, for who routes them.
template <typename Scalar>
void keep_without_padding(tokens_in<Scalar> x, const routing_context<Scalar>& context, matrix_buffer<Scalar>& kept) {
  kept.resize(x.rows(), x.cols());
  kept.map() = x;
  for (index_t t = 0; t < x.rows(); ++t)
    if (context.is_padding(t)) std::fill_n(kept.row(t), x.cols(), Scalar(0));
}

}  // namespace detail

template <FloatOrDouble Scalar>
class kept_rows {
public:
  void keep(tokens_in<Scalar> x, const routing_context<Scalar>& context) {
    counts_.resize(x.rows());
    x_.resize(x.rows(), x.cols());
    context.executor.parallel_each(x.rows(), x.cols(), [&](index_t t) {
      const Scalar* row = x.data() + t * x.outerStride();
      counts_[t] = !context.is_padding(t) && !any_nan(row, x.cols());
      copy_row(row, counts_[t], x_.row(t), x.cols());
    });
  }

  index_t rows() const noexcept { return x_.rows(); }
  /// Whether a row is neither padding nor NaN.
  bool counts(index_t t) const noexcept { return counts_[t] != 0; }
  const std::uint8_t* counts() const noexcept { return counts_.data(); }
  /// How many rows are neither padding nor NaN.
  index_t counted() const noexcept { return std::count(counts_.begin(), counts_.end(), std::uint8_t(1)); }
  /// The context for who may see only the rows that count: valid until keep is called again.
  routing_context<Scalar> visible(const routing_context<Scalar>& context) const {
    routing_context<Scalar> own = context;
    own.token_mask = counts_.span();
    return own;
  }
  const_matrix_map<Scalar> x() const noexcept { return x_.map(); }

  /// dy with zeros in the rows that do not count; valid until the next call.
  const_matrix_map<Scalar> of_gradient(tokens_in<Scalar> dy, const executor_ref& executor) {
    dy_.resize(dy.rows(), dy.cols());
    executor.parallel_each(dy.rows(), dy.cols(), [&](index_t t) {
      copy_row(dy.data() + t * dy.outerStride(), counts_[t], dy_.row(t), dy.cols());
    });
    return std::as_const(dy_).map();
  }
  /// What of_gradient returned, for those who add to it before they go on.
  matrix_map<Scalar> gradient() noexcept { return dy_.map(); }

private:
  static void copy_row(const Scalar* from, bool counts, Scalar* to, index_t count) {
    if (counts)
      std::copy_n(from, count, to);
    else
      std::fill_n(to, count, Scalar(0));
  }

  buffer<std::uint8_t> counts_;
  matrix_buffer<Scalar> x_;
  matrix_buffer<Scalar> dy_;
};

}  // namespace sluice::inline SLUICE_ISA
