/// The rotation trick: the gradient passes a choice by the rotation and scaling that takes x to its code.
///
///   u = x / |x|   v = q / |q|   w = (u + v) / |u + v|   lambda = |q| / |x|          all constants in backward
///   R = I - 2 w w^T + 2 v u^T   turns u to v:   q = lambda R x
///   dx = lambda R^T dy = lambda (dy - 2 (w . dy) w + 2 (v . dy) u)
///
/// The angle between dx and x is that between dy and q, and |dx| = lambda |dy|; where x is its code dx = dy. The output
/// is the code itself, and no gradient reaches it. Norms are max(|x|, 1e-6); the authors' program has |x| + 1e-6
/// (adds), and as its output lambda R x, which is the code but for a millionth. |u + v| is at least 1e-6: where u = -v
/// no rotation is the shortest, and dx = lambda (dy + 2 (v . dy) u). A tiny x makes lambda large; clip gradients if
/// yours are. Fifty et al. 2024, "Restructuring Vector Quantization with the Rotation Trick", section 4.
#pragma once

#include <sluice/codebook/quantized_batch.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <cmath>

namespace sluice::inline SLUICE_ISA {

struct rotation {
  using role = gradient_role;

  bool adds = false;  ///< |x| + 1e-6 in the place of max(|x|, 1e-6)

  /// Adds to dx [T,D].
  template <typename Scalar, typename Memory>
  void backward(const quantized_batch<Scalar>& batch, tokens_in<Scalar> dy, tokens_out<Scalar> dx, matrix_map<Scalar>,
                Memory&) const {
    batch.context.executor.parallel_each(dy.rows(), 3 * dy.cols(), [&](index_t t) {
      if (batch.has_code(t))
        turn_back(batch.row(t), batch.code_of(t), dy.data() + t * dy.outerStride(), dx.data() + t * dx.outerStride(),
                  dy.cols());
    });
  }

private:
  /// dx += lambda R^T dy. With a = 1/|x| and b = 1/|q|, w is along a x + b q.
  template <typename Scalar>
  void turn_back(const Scalar* x, const Scalar* q, const Scalar* dy, Scalar* dx, index_t count) const {
    constexpr Scalar least = Scalar(1e-6);
    const auto guarded = [&](Scalar length) { return adds ? length + least : (std::max)(length, least); };
    const Scalar code_length = std::sqrt(kernel::dot(q, q, count));
    const Scalar a = 1 / guarded(std::sqrt(kernel::dot(x, x, count))), b = 1 / guarded(code_length);
    const Scalar lambda = a * (adds ? code_length : 1 / b), q_dy = kernel::dot(q, dy, count);
    Scalar sum_length = 0, sum_dy = 0;  // of u + v itself: products of x and q would cancel where they are opposite
    for (index_t i = 0; i < count; ++i) {
      const Scalar sum = a * x[i] + b * q[i];
      sum_length += sum * sum;
      sum_dy += sum * dy[i];
    }
    const Scalar along = -2 * sum_dy / (std::max)(sum_length, least * least);
    kernel::add_scaled(lambda, dy, dx, count);
    kernel::add_scaled(lambda * a * (along + 2 * b * q_dy), x, dx, count);
    kernel::add_scaled(lambda * b * along, q, dx, count);
  }
};

}  // namespace sluice::inline SLUICE_ISA
