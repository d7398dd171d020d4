/// The rotation trick: the gradient passes a choice by the rotation and scaling that takes x to its code.
///
///   u = x / |x|   v = q / |q|   w = (u + v) / |u + v|   lambda = |q| / |x|          all constants in backward
///   R = I - 2 w w^T + 2 v u^T   turns u to v:   q = lambda R x
///   dx = lambda R^T dy = lambda (dy - 2 (w . dy) w + 2 (v . dy) u)
///
/// The angle between dx and x is that between dy and q, and |dx| = lambda |dy|; where x is its code dx = dy. The output
/// is the code itself, and no gradient reaches it. |x| and |q| are taken as at least 1e-6, as are, beside them, lengths
/// of u + v: where u = -v no rotation is the shortest, and dx = lambda (dy + 2 (v . dy) u) is what remains. A tiny x makes
/// lambda large; clip gradients if yours are. Two published forms add 1e-6 to the norms or take the greater of both; the
/// results differ by as much.
/// Fifty et al. 2024, "Restructuring Vector Quantization with the Rotation Trick", section 4.
#pragma once

#include <sluice/codebook/quantized_batch.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <cmath>

namespace sluice::inline SLUICE_ISA {

struct rotation {
  using role = gradient_role;

  /// Adds to dx [T,D].
  template <typename Scalar, typename Memory>
  void backward(const quantized_batch<Scalar>& batch, tokens_in<Scalar> dy, tokens_out<Scalar> dx, matrix_map<Scalar>, Memory&) const {
    batch.context.executor.parallel_blocks(dy.rows(), 32, 3 * dy.cols(), [&](index_t begin, index_t end) {
      for (index_t t = begin; t < end; ++t)
        if (batch.has_code(t))
          turn_back(batch.row(t), batch.code_of(t), dy.data() + t * dy.outerStride(), dx.data() + t * dx.outerStride(),
                    dy.cols());
    });
  }

private:
  /// dx += lambda R^T dy. With a = 1/|x| and b = 1/|q|, w is along a x + b q.
  template <typename Scalar>
  static void turn_back(const Scalar* x, const Scalar* q, const Scalar* dy, Scalar* dx, index_t count) {
    constexpr Scalar least = Scalar(1e-6);
    const Scalar a = 1 / std::max(std::sqrt(kernel::dot(x, x, count)), least);
    const Scalar b = 1 / std::max(std::sqrt(kernel::dot(q, q, count)), least);
    const Scalar lambda = a / b, q_dy = kernel::dot(q, dy, count);
    Scalar sum_length = 0, sum_dy = 0;  // of u + v itself: products of x and q would cancel where they are opposite
    for (index_t i = 0; i < count; ++i) {
      const Scalar sum = a * x[i] + b * q[i];
      sum_length += sum * sum;
      sum_dy += sum * dy[i];
    }
    const Scalar along = -2 * sum_dy / std::max(sum_length, least * least);
    kernel::add_scaled(lambda, dy, dx, count);
    kernel::add_scaled(lambda * a * (along + 2 * b * q_dy), x, dx, count);
    kernel::add_scaled(lambda * b * along, q, dx, count);
  }
};

}  // namespace sluice::inline SLUICE_ISA
