/// A loss on an adapter that says again what it was told: its outputs should not follow its inputs.
///
///   u^, x^ [T,D]: rows of the adapter's outputs u and of its inputs x at unit length (no shorter than 1e-12 is taken)
///   C = u^^T x^ [D,D];   loss = coefficient / B * sum over i != j of C[i,j]^2             B sequences
///   du^ = g x^ C'^T;  dx^ = g u^ C';  du = (du^ - u^ <u^, du^>) / |u|  g = 2 coefficient / B, C' is C without diagonal
///
/// Tokens that are hidden (padding, NaN) do not count; without others the loss is 0. Rows of zeros get nothing. It
/// costs three products of [T,D] and [D,D]. The paper's other term, which ties tokens to the context of their sequence,
/// is adapter/context_information.hpp. Jiang, Zheng 2023, arXiv:2303.01239 (MixPHM).
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/types.hpp>
#include <sluice/kernel/gemm.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace sluice::inline SLUICE_ISA {

/// Of one call; keeps its memory.
template <FloatOrDouble Scalar>
class redundancy {
public:
  /// The loss; counts[t] = 0 hides a token.
  Scalar evaluate(tokens_in<Scalar> u, tokens_in<Scalar> x, const std::uint8_t* counts, index_t sequences,
                  Scalar coefficient) {
    const index_t width = u.cols();
    normalize(u, counts, unit_u_, length_u_);
    normalize(x, counts, unit_x_, length_x_);
    correlation_.resize(width, width);
    kernel::multiply_tn(width, width, u.rows(), unit_u_.data(), width, unit_x_.data(), width, correlation_.data(),
                        width);
    for (index_t i = 0; i < width; ++i) correlation_(i, i) = 0;
    const Scalar share = coefficient / static_cast<Scalar>((std::max<index_t>)(sequences, 1));
    factor_ = 2 * share;
    return share * kernel::dot(correlation_.data(), correlation_.data(), correlation_.size());
  }

  /// Adds the gradients of the last evaluation.
  void backward(tokens_out<Scalar> du, tokens_out<Scalar> dx) {
    const index_t tokens = unit_u_.rows(), width = unit_u_.cols();
    dunit_.resize(tokens, width);
    kernel::multiply_nt(tokens, width, width, unit_x_.data(), width, correlation_.data(), width, dunit_.data(), width);
    add(unit_u_, length_u_, du);
    kernel::multiply_nn(tokens, width, width, unit_u_.data(), width, correlation_.data(), width, dunit_.data(), width);
    add(unit_x_, length_x_, dx);
  }

private:
  static constexpr Scalar shortest = Scalar(1e-12);

  static void normalize(tokens_in<Scalar> rows, const std::uint8_t* counts, matrix_buffer<Scalar>& unit,
                        buffer<Scalar>& length) {
    unit.set_zero(rows.rows(), rows.cols());
    length.assign(rows.rows(), 0);
    for (index_t t = 0; t < rows.rows(); ++t) {
      if (counts[t] == 0) continue;
      const Scalar* const row = rows.data() + t * rows.outerStride();
      length[t] = std::sqrt(kernel::dot(row, row, rows.cols()));
      kernel::copy_scaled(1 / (std::max)(length[t], shortest), row, unit.row(t), rows.cols());
    }
  }

  /// Through the normalisation. Hidden tokens have unit rows of zero, and get nothing.
  void add(const matrix_buffer<Scalar>& unit, const buffer<Scalar>& length, tokens_out<Scalar>& drows) const {
    for (index_t t = 0; t < unit.rows(); ++t) {
      Scalar* const out = drows.data() + t * drows.outerStride();
      const Scalar scale = factor_ / (std::max)(length[t], shortest);
      if (length[t] > 0) kernel::add_scaled(scale, dunit_.row(t), out, unit.cols());
      if (length[t] > shortest)
        kernel::add_scaled(-scale * kernel::dot(unit.row(t), dunit_.row(t), unit.cols()), unit.row(t), out,
                           unit.cols());
    }
  }

  matrix_buffer<Scalar> unit_u_, unit_x_, dunit_;  ///< [T,D]
  matrix_buffer<Scalar> correlation_;              ///< [D,D] without its diagonal
  buffer<Scalar> length_u_, length_x_;             ///< [T]
  Scalar factor_ = 0;
};

}  // namespace sluice::inline SLUICE_ISA
