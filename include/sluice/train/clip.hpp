/// Limits the length of a model's gradient.
///
///   norm = sqrt(sum of g^2 over all learned parameters);   if norm > max, every g is multiplied by max / norm
///
/// Frozen parameters and states do not count and are not scaled. The sum runs in double, in the order of the
/// parameters, over blocks of fixed size: equal bits on every call. A norm that is infinite or NaN scales nothing; the
/// caller sees it in the returned value and can skip the step. Pascanu, Mikolov, Bengio 2013, arXiv:1211.5063.
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

namespace sluice::inline SLUICE_ISA {

/// Length of the gradient of all learned parameters.
template <typename Model>
double gradient_norm(const Model& model) {
  static_assert(explain_model<Model>());
  // Short enough that a float sum of squares loses nothing that matters, long enough to run on vectors.
  constexpr index_t block = 1024;
  double sum = 0;
  detail::for_each_unnamed_parameter(model, [&](const auto& p) {
    if (!p.is_learned() || !p.has_gradient()) return;
    const auto* g = p.gradient().data();
    const auto count = static_cast<index_t>(p.gradient().size());
    for (index_t begin = 0; begin < count; begin += block)
      sum += static_cast<double>(kernel::dot(g + begin, g + begin, (std::min)(block, count - begin)));
  });
  return std::sqrt(sum);
}

/// Scales the gradient down to length `max` if it is longer. Returns its length before that. Throws
/// std::invalid_argument unless max is finite and positive.
template <typename Model>
double clip_gradient_norm(Model& model, double max) {
  if (!is_above(max, 0)) throw_invalid("clip_gradient_norm needs a finite length > 0, not ", max);
  const double norm = gradient_norm(std::as_const(model));
  const bool finite = !is_nan(norm) && order_key(norm) <= order_key((std::numeric_limits<double>::max)());
  if (!finite || norm <= max) return norm;
  detail::for_each_unnamed_parameter(model, [&](auto& p) {
    using scalar = typename std::remove_reference_t<decltype(p)>::scalar;
    if (!p.is_learned() || !p.has_gradient()) return;
    for (scalar& g : p.gradient()) g *= static_cast<scalar>(max / norm);
  });
  return norm;
}

}  // namespace sluice::inline SLUICE_ISA
