/// Which experts come near the best one: what SparseMixer chooses among.
///
///   e is a near rival of the largest logit m  where  (m - L[e]) / max(|L[e]|, m) <= 2 jitter
///
/// Where both are 0 there is no difference. Liu et al. 2023, arXiv:2310.00811.
#pragma once

#include <sluice/core/types.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA::kernel {

template <FloatOrDouble Scalar>
bool is_near_rival(Scalar logit, Scalar largest, Scalar jitter) {
  const Scalar size = (std::abs)(logit);
  const Scalar scale = size > largest ? size : largest;
  return !(scale > Scalar(0)) || !((largest - logit) / scale > 2 * jitter);
}

}  // namespace sluice::inline SLUICE_ISA::kernel
