/// Codes of one bit: the sign of a weight, with the mean magnitude of its group as the scale.
///
///   s = mean |w| of a group;  code 1 for w >= 0, 0 otherwise;  w ~ s (2 code - 1)
///
/// In a scalar product with x a group is s (2 sum of the x with code 1 - sum of x). In the result scales are 2 s and
/// minima -s, which decode to s and -s exactly. A zero counts as positive; a group of zeros has s = 0. The mean is
/// taken in double, in the order of the inputs; the last group may be shorter. Throws std::invalid_argument for weights
/// that have no code. Empty matrices are valid. What MC-MoE makes of the experts that get one bit: Huang et al. 2024,
/// arXiv:2410.06270.
#pragma once

#include <sluice/quant/round_to_nearest.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

/// A scale for every `group` inputs of an output; 0: for all of them.
inline grouped_codes sign_codes(tokens_in<float> w, index_t group = 0, const executor_ref& executor = {}) {
  grouped_codes out = detail::codes_to_fill(w.rows(), w.cols(), group, 2);
  out.bits = 1;
  out.minima.resize(out.scales.rows(), out.scales.cols());
  out.zeros.resize(0, 0);
  detail::check_finite_weights(w, executor);
  executor.parallel_each(w.rows(), w.cols(), [&](index_t r) {
    for (index_t g = 0; g < out.groups(); ++g) {
      const index_t first = g * out.group, last = (std::min)(first + out.group, w.cols());
      double sum = 0;
      for (index_t c = first; c < last; ++c) {
        sum += (std::abs)(static_cast<double>(w(r, c)));
        out.codes(r, c) = w(r, c) >= 0 ? 1 : 0;
      }
      const auto mean = static_cast<float>(sum / static_cast<double>(last - first));
      out.scales(r, g) = 2 * mean;
      out.minima(r, g) = -mean;
    }
  });
  return out;
}

}  // namespace sluice::inline SLUICE_ISA
