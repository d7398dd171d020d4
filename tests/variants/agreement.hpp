#pragma once

#include "layer.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace border {

/// The largest difference between two training steps, in units of what rounding explains: at most 1 if they agree.
/// Sums of up to `tokens` products, in a chain of at most five (logits, up, down, and two on the way back), 8 operations around each.
inline float disagreement(const results& a, const results& b, std::ptrdiff_t tokens) {
  float worst = 0;
  const auto compare = [&](const std::vector<float>& u, const std::vector<float>& v) {
    float largest = 0, difference = u.size() == v.size() ? 0 : std::numeric_limits<float>::infinity();
    for (std::size_t i = 0; i < std::min(u.size(), v.size()); ++i) {
      largest = std::max(largest, std::abs(u[i]));
      difference = std::max(difference, std::abs(u[i] - v[i]));
    }
    const float tolerance = 5 * 8 * static_cast<float>(tokens) * std::numeric_limits<float>::epsilon() * largest;
    worst = std::max(worst, tolerance > 0 ? difference / tolerance
                                          : std::numeric_limits<float>::infinity());  // all zero: nothing ran
  };
  compare(a.y, b.y);
  compare(a.dx, b.dx);
  if (a.gradients.size() != b.gradients.size()) return std::numeric_limits<float>::infinity();
  for (std::size_t i = 0; i < a.gradients.size(); ++i) compare(a.gradients[i], b.gradients[i]);
  return worst;
}

}  // namespace border
