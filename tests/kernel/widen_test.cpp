#include <sluice/kernel/widen.hpp>

#include "support.hpp"

#include <cstring>
#include <vector>

using namespace sluice;

TEMPLATE_TEST_CASE("load_widened: all 65536 values, bit for bit", "[kernel]", bfloat16, float16) {
  constexpr index_t lanes = kernel::simd_width<float>;
  int wrong = 0;
  for (std::uint32_t first = 0; first < 0x10000; first += static_cast<std::uint32_t>(lanes)) {
    std::vector<TestType> halves;
    for (index_t i = 0; i < lanes; ++i)
      halves.push_back({static_cast<std::uint16_t>(first + static_cast<std::uint32_t>(i))});
    float got[lanes];
    kernel::store<float>(got, kernel::load_widened(halves.data()));
    for (index_t i = 0; i < lanes; ++i) {
      const TestType half = halves[static_cast<std::size_t>(i)];
      const float expected = to_float(half);
      const bool is_signalling = is_nan(expected) && std::is_same_v<TestType, float16>;  // hardware makes it quiet
      wrong += is_signalling ? !is_nan(got[i]) : std::memcmp(&got[i], &expected, sizeof expected) != 0;
    }
  }
  CHECK(wrong == 0);
}
