// One program whose sources have different flags, linked as usual: the library's own symbols keep out of each other's way. (On a
// machine that lacks one of the instruction sets such a program is not safe, because of Eigen's symbols: that takes variants.)
#include <sluice/core/variant.hpp>

#include "../support.hpp"
#include "agreement.hpp"
#include "inputs.hpp"

using step = border::results(const std::vector<float>& x, const std::vector<float>& dy);
extern step training_step_sse2, training_step_avx2, training_step_avx512;

TEST_CASE("mixed flags: sources built with different flags link, run and agree", "[mixed_flags]") {
  if (!sluice::cpu_runs("avx512")) {
    WARN("left out: this machine does not run avx512");
    return;
  }
  const std::vector<float> x = border::inputs(131 * 24, 4), dy = border::inputs(131 * 24, 5);
  const border::results baseline = training_step_sse2(x, dy);
  border::check_agreement(baseline, training_step_avx2(x, dy), 131);
  border::check_agreement(baseline, training_step_avx512(x, dy), 131);
}
