/// Straight-through: the gradient passes a choice as if the code were x itself.
///
///   y = x + sg[q - x]:    dx = dy, nothing for the code
///
/// Bengio, Leonard, Courville 2013; van den Oord, Vinyals, Kavukcuoglu 2017, "Neural Discrete Representation Learning",
/// section 3.2.
#pragma once

#include <sluice/codebook/quantized_batch.hpp>
#include <sluice/kernel/vector_math.hpp>

namespace sluice::inline SLUICE_ISA {

struct straight_through {
  using role = gradient_role;

  /// Adds to dx [T,D] and, where codes learn by gradients, to dcodes [C,D], which has no rows where they do not. dy is
  /// zero where a token is hidden.
  template <typename Scalar, typename Memory>
  void backward(const quantized_batch<Scalar>&, tokens_in<Scalar> dy, tokens_out<Scalar> dx, matrix_map<Scalar>,
                Memory&) const {
    for (index_t t = 0; t < dy.rows(); ++t)
      kernel::add_scaled(Scalar(1), dy.data() + t * dy.outerStride(), dx.data() + t * dx.outerStride(), dy.cols());
  }
};

}  // namespace sluice::inline SLUICE_ISA
