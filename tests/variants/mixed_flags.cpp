// One program whose sources have different flags, linked as usual: the library's own symbols keep out of each other's way. (On a
// machine that lacks one of the instruction sets such a program is not safe, because of Eigen's symbols: that takes variants.)
#include <sluice/core/variant.hpp>

#include "agreement.hpp"
#include "inputs.hpp"

#include <cstdio>

using step_function = border::results(const std::vector<float>& x, const std::vector<float>& dy);
extern step_function training_step_sse2, training_step_avx2, training_step_avx512;

int main() {
  // Before anything else: from here on a function of the standard library may come from any of the objects.
  if (!sluice::cpu_runs("avx512")) return 77;

  const std::vector<float> x = border::inputs(131 * 24, 4), dy = border::inputs(131 * 24, 5);
  const border::results baseline = training_step_sse2(x, dy);
  const float avx2 = border::disagreement(baseline, training_step_avx2(x, dy), 131);
  const float avx512 = border::disagreement(baseline, training_step_avx512(x, dy), 131);
  std::printf("of what rounding explains: avx2 %g, avx512 %g\n", static_cast<double>(avx2),
              static_cast<double>(avx512));
  return avx2 <= 1 && avx512 <= 1 ? 0 : 1;
}
