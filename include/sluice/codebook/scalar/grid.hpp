/// What quantisers without a table share: every number is rounded on its own, the codes are the points of a grid.
///
///   x [T,D] -> level[t,d], one of L[d] -> ids [T,M] and y [T,D]        D = M B: column m stands for B numbers of x
///   id = sum over b of level[b] stride[b],   stride[0] = 1, stride[b+1] = stride[b] L[b]: the first number goes
///   fastest; or from the other end: the first number is the most significant
///   y = code(level);   dx = slope(x) dy        roundings and slopes: codebook/scalar/rounding.hpp
///
/// There is no search and nothing is learned: D roundings a token. The codes of a column, the product of its levels,
/// fit 63 bits, or the constructor throws. y of training, of inference and of decode are equal bit for bit. A token's
/// result depends on neither its neighbours nor the vector width's remainder.
///
/// Derived derives from grid_quantizer<Derived, Scalar, Rounding>; one that has losses hides quantize and
/// quantize_backward (codebook/scalar/sign_quantizer.hpp).
#pragma once

#include <sluice/codebook/quantizer.hpp>
#include <sluice/codebook/scalar/rounding.hpp>

#include <array>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// Which number of a column has stride 1 in an id.
enum class fastest_number { first, last };

template <typename Derived, FloatOrDouble Scalar, LevelRounding<Scalar> Rounding, typename OwnTape = detail::no_memory>
class grid_quantizer : public quantizer_base<Derived, Scalar, detail::no_memory, OwnTape> {
  using base = quantizer_base<Derived, Scalar, detail::no_memory, OwnTape>;
  friend base;

public:
  /// One rounding a number of x. Throws std::invalid_argument unless there is one, they divide into the columns, and
  /// the codes of a column can be numbered.
  grid_quantizer(std::vector<Rounding> roundings, index_t columns, fastest_number fastest)
      : roundings_(std::move(roundings)), columns_(columns) {
    if (columns < 1 || inputs() < 1 || inputs() % columns != 0)
      throw_invalid("numbers to be rounded must divide into columns; there are ", inputs(), " for ", columns);
    width_ = inputs() / columns;
    stride_.resize(roundings_.size());
    codes_.assign(as_size(columns), 1);
    for (index_t m = 0; m < columns; ++m)
      for (index_t b = 0; b < width_; ++b) {
        const index_t d = m * width_ + (fastest == fastest_number::first ? b : width_ - 1 - b);
        stride_[as_size(d)] = codes_[as_size(m)];
        codes_[as_size(m)] = checked_product(codes_[as_size(m)], rounding(d).levels());
      }
  }

  index_t inputs() const noexcept { return static_cast<index_t>(roundings_.size()); }
  index_t code_columns() const noexcept { return columns_; }
  index_t codes(index_t column) const noexcept { return codes_[as_size(column)]; }
  /// How number d of x is rounded.
  const Rounding& rounding(index_t d) const noexcept { return roundings_[as_size(d)]; }
  /// The level of number d in the id of its column.
  index_t level(index_t id, index_t d) const noexcept { return id / stride_[as_size(d)] % rounding(d).levels(); }

  /// ids [T,M] of y [T,D] that are codes already, or near them: what decode goes back from. encode squashes first.
  void ids_of_codes(tokens_in<Scalar> y, tokens_out<index_t> ids) const {
    if (y.cols() != inputs() || ids.rows() != y.rows() || ids.cols() != columns_)
      throw_invalid("codes [T, ", inputs(), "] have ids [T, ", columns_, "]; y is [", y.rows(), ", ", y.cols(),
                    "] and ids [", ids.rows(), ", ", ids.cols(), "]");
    ids.setZero();
    for (index_t t = 0; t < y.rows(); ++t)
      for (index_t d = 0; d < inputs(); ++d)
        ids(t, d / width_) += rounding(d).level_of_code(y(t, d)) * stride_[as_size(d)];
  }

protected:
  /// Numbers of x that a column stands for.
  index_t column_width() const noexcept { return width_; }

  void quantize(typename base::tape& t, tokens_out<Scalar> y, const routing_context<Scalar>& context) const {
    t.value = 0;
    write_codes(t.ids.map(), y, context.executor);
  }
  void quantize_backward(tokens_in<Scalar> dy, tokens_out<Scalar> dx, typename base::tape& t) {
    const auto x = t.kept.x();
    t.context.executor.parallel_blocks(x.rows(), tile, inputs() * squash_work, [&](index_t begin, index_t end) {
      for (index_t d = 0; d < inputs(); ++d) {
        const auto slopes = of_column(x, begin, end, d, [&](const auto& z) { return rounding(d).slope(z); });
        for (index_t t2 = begin; t2 < end; ++t2) dx(t2, d) += slopes[as_size(t2 - begin)] * dy(t2, d);
      }
    });
  }

private:
  /// Rows of one task, and numbers of one d that are rounded together: whole vectors always, however few rows.
  static constexpr index_t tile = 32;
  static constexpr index_t squash_work = 16;
  static_assert(tile % kernel::simd_width<Scalar> == 0);

  template <typename F>
  static std::array<Scalar, as_size(tile)> of_column(tokens_in<Scalar> x, index_t begin, index_t end, index_t d,
                                                     F&& f) {
    std::array<Scalar, as_size(tile)> z{};
    for (index_t t = begin; t < end; ++t) z[as_size(t - begin)] = x(t, d);
    for (index_t i = 0; i < tile; i += kernel::simd_width<Scalar>)
      kernel::store<Scalar>(z.data() + i, f(kernel::load(z.data() + i)));
    return z;
  }

  void encode_rows(tokens_in<Scalar> x, tokens_out<index_t> ids, detail::no_memory&,
                   const routing_context<Scalar>& context) const {
    context.executor.parallel_blocks(x.rows(), tile, inputs() * squash_work, [&](index_t begin, index_t end) {
      ids.middleRows(begin, end - begin).setZero();
      for (index_t d = 0; d < inputs(); ++d) {
        const auto positions = of_column(x, begin, end, d, [&](const auto& z) { return rounding(d).position(z); });
        for (index_t t = begin; t < end; ++t)
          ids(t, d / width_) += rounding(d).level(positions[as_size(t - begin)]) * stride_[as_size(d)];
      }
    });
  }
  void assign(typename base::tape& t, const routing_context<Scalar>& context) const {
    detail::no_memory none;
    encode_rows(t.kept.x(), t.ids.map(), none, context);
  }

  void decode_rows(tokens_in<index_t> ids, tokens_out<Scalar> y, detail::no_memory&,
                   const executor_ref& executor) const {
    write_codes(ids, y, executor);
  }
  /// A column that has no code is zero.
  void write_codes(tokens_in<index_t> ids, tokens_out<Scalar> y, const executor_ref& executor) const {
    executor.parallel_each(ids.rows(), inputs() * 4, [&](index_t t) {
      for (index_t d = 0; d < inputs(); ++d) {
        const index_t id = ids(t, d / width_);
        y(t, d) = id == no_code ? Scalar(0) : rounding(d).code(level(id, d));
      }
    });
  }

  std::vector<Rounding> roundings_;
  std::vector<index_t> stride_, codes_;
  index_t columns_, width_ = 0;
};

}  // namespace sluice::inline SLUICE_ISA
