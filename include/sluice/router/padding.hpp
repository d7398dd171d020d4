/// Keeps what stands in padding rows away from a gate.
///
/// Padding rows may hold anything, NaN too. Their logits have gradient 0, but the gate's weights would still get 0 *
/// NaN. So, if there is a token mask, the gate sees a copy of x [T,D] with zeros in those rows, forward and backward.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/context.hpp>

#include <algorithm>

namespace sluice::inline SLUICE_ISA {

template <std::floating_point Scalar>
class without_padding {
public:
  /// Makes the copy, if one is needed.
  void hide(tokens_in<Scalar> x, const routing_context<Scalar>& context) {
    if (context.token_mask.empty()) return;
    copy_.resize(x.rows(), x.cols());
    context.executor.parallel_blocks(x.rows(), rows_per_task, [&](index_t begin, index_t end) {
      for (index_t token = begin; token < end; ++token)
        if (context.is_padding(token))
          std::fill_n(copy_.row(token), x.cols(), Scalar(0));
        else
          std::copy_n(x.data() + token * x.outerStride(), x.cols(), copy_.row(token));
    });
  }

  /// What hide() made of this x: the copy, or x itself.
  Eigen::Ref<const matrix<Scalar>, 0, Eigen::OuterStride<>> of(tokens_in<Scalar> x,
                                                               const routing_context<Scalar>& context) const {
    using view = Eigen::Ref<const matrix<Scalar>, 0, Eigen::OuterStride<>>;
    return context.token_mask.empty() ? view(x) : view(copy_.map());
  }

private:
  static constexpr index_t rows_per_task = 32;

  matrix_buffer<Scalar> copy_;
};

}  // namespace sluice::inline SLUICE_ISA
