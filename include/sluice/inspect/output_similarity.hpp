/// How alike experts are in what they put out: the mean angle between outputs for the same token.
///
///   S[e,f] = mean over tokens of 1 - arccos(cosine of f_e(x_t) and f_f(x_t)) / pi    [E,E], 1 alike, .5 unrelated
///
///   const auto s = output_similarity(expert_outputs(layer.bank(), x));
///
/// Works as well on hidden states (hidden_states.hpp). Lengths do not matter; an output of zeros is at right angles to
/// all, itself too. A token is left out for a pair of which one put out NaN or infinity; where none is left, or T = 0,
/// S is NaN: nothing was seen. The diagonal is 1 but for those. Lo et al. 2024, arXiv:2406.18219, section 5.1.
#pragma once

#include <sluice/inspect/weight_similarity.hpp>

#include <vector>

namespace sluice::inline SLUICE_ISA {

/// Throws std::invalid_argument unless all are of one shape [T,F].
template <typename Scalar>
matrix<double> output_similarity(const std::vector<matrix<Scalar>>& outputs) {
  detail::check_alike(outputs, true);
  const auto E = static_cast<index_t>(outputs.size());
  matrix<double> sums = matrix<double>::Zero(E, E), seen = sums;
  if (E == 0) return sums;
  matrix<Scalar> token(E, outputs[0].cols());
  for (index_t t = 0; t < outputs[0].rows(); ++t) {
    for (index_t e = 0; e < E; ++e) token.row(e) = outputs[as_size(e)].row(t);
    const matrix<double> u = detail::directions(token);
    for (index_t e = 0; e < E; ++e)
      for (index_t f = 0; f <= e; ++f) {
        const double s = detail::unit_angular(u, e, u, f);
        if (is_nan(s)) continue;
        sums(e, f) += s;
        seen(e, f) += 1;
      }
  }
  for (index_t e = 0; e < E; ++e)
    for (index_t f = 0; f <= e; ++f)
      sums(e, f) = sums(f, e) = seen(e, f) > 0 ? sums(e, f) / seen(e, f) : quiet_nan<double>();
  return sums;
}

}  // namespace sluice::inline SLUICE_ISA
