#include <sluice/kernel/flush_to_zero.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

/// Half of the smallest number with a full mantissa, worked out while the program runs. Its bits: comparing would flush, too.
std::uint32_t half_of_smallest() {
  volatile float smallest = std::numeric_limits<float>::min();
  volatile float half = smallest * 0.5f;
  const float read = half;
  std::uint32_t bits;
  std::memcpy(&bits, &read, sizeof bits);
  return bits;
}

/// Whether a number that is too small already, from memory, counts as something.
bool small_operand_counts() {
  volatile std::uint32_t stored = 0x00000400;
  const std::uint32_t bits = stored;
  float number;
  std::memcpy(&number, &bits, sizeof number);
  volatile float operand = number;
  volatile float product = operand * 1e30f;
  return product > 1e-20f;
}

}  // namespace

TEST_CASE("flush_to_zero: small numbers become zero while it lives, and not afterwards", "[kernel]") {
  const std::uint32_t before = half_of_smallest();
  const bool counted = small_operand_counts();
  {
    const flush_to_zero guard;
    if (flush_to_zero::available()) {
      CHECK(half_of_smallest() == 0);
      CHECK_FALSE(small_operand_counts());
    }
    { const flush_to_zero inner; }
    if (flush_to_zero::available()) CHECK(half_of_smallest() == 0);
  }
  CHECK(half_of_smallest() == before);
  CHECK(small_operand_counts() == counted);
#if !defined(__FAST_MATH__)
  CHECK(before == 0x00400000);
  CHECK(counted);
#endif
}
