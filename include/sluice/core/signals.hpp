/// What a score-based router saw on its way to the plan: the input of auxiliary losses, and the gradients they return.
///
///   clean  [T,E]  logits of the gate
///   noisy  [T,E]  the logits that selection used; equal to clean where the router added no noise
///   noise_std     scale of the noise: one number sigma, or [T,E] where it is learned
///
/// A loss adds its gradient with respect to each array to the matching array of score_gradients. So can a caller,
/// between the forward and the backward call: that is how a gradient from the next layer's router reaches this one
/// (MoE++).
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/types.hpp>

#include <concepts>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
struct score_signals {
  matrix_buffer<Scalar> clean;
  matrix_buffer<Scalar> noisy_storage;  ///< [T,E] if has_noise, else unused
  matrix_buffer<Scalar> noise_std;      ///< [T,E] if the scale is learned, else empty
  Scalar sigma = 0;                     ///< scale of the noise where it is one number
  bool has_noise = false;
  index_t top_k = 0;                    ///< experts per token of this call

  const matrix_buffer<Scalar>& noisy() const noexcept { return has_noise ? noisy_storage : clean; }
};

template <FloatOrDouble Scalar>
struct score_gradients {
  matrix_buffer<Scalar> clean;
  matrix_buffer<Scalar> noisy;      ///< [T,E] if the signals have noise, else empty: use noisy_or_clean()
  matrix_buffer<Scalar> noise_std;  ///< [T,E] if the scale is learned, else empty

  /// Memory of losses, so that a warm evaluation allocates nothing; what it holds means nothing between calls.
  matrix_buffer<Scalar> row_scratch;
  buffer<double> sum_scratch;

  void zero_like(const score_signals<Scalar>& seen) {
    clean.set_zero(seen.clean.rows(), seen.clean.cols());
    noisy.set_zero(seen.has_noise ? seen.clean.rows() : 0, seen.clean.cols());
    noise_std.set_zero(seen.noise_std.rows(), seen.noise_std.cols());
  }
  /// Room for the scratch of any loss, also of one that finds no token to look at this time: 2E numbers a token, and
  /// sums.
  void reserve_scratch(index_t groups) {
    row_scratch.reserve(clean.rows(), 2 * clean.cols());
    sum_scratch.reserve((2 + groups) * clean.cols());
  }
  matrix_buffer<Scalar>& noisy_or_clean() noexcept { return noisy.empty() ? clean : noisy; }
};

}  // namespace sluice::inline SLUICE_ISA
