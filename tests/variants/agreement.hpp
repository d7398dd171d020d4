#pragma once

#include "../support.hpp"
#include "layer.hpp"

namespace border {

inline float largest(const std::vector<float>& values) {
  float m = 0;
  for (const float value : values) m = std::max(m, std::abs(value));
  return m;
}

/// Equal up to rounding: sums of up to `tokens` products in a chain of at most five (logits, up, down, and two on the way back).
inline void check_agreement(const results& a, const results& b, std::ptrdiff_t tokens) {
  const auto check_close = [&](const std::vector<float>& u, const std::vector<float>& v) {
    REQUIRE(u.size() == v.size());
    CHECK(largest(u) > 0);
    float difference = 0;
    for (std::size_t i = 0; i < u.size(); ++i) difference = std::max(difference, std::abs(u[i] - v[i]));
    CHECK(difference <= 5 * sluice::test::bound<float>(tokens) * largest(u));
  };
  check_close(a.y, b.y);
  check_close(a.dx, b.dx);
  REQUIRE(a.gradients.size() == b.gradients.size());
  for (std::size_t i = 0; i < a.gradients.size(); ++i) check_close(a.gradients[i], b.gradients[i]);
}

}  // namespace border
