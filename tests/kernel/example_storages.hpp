// Weight storages as a user would add them, for the dot-product instructions of CPUs, in portable code.
#pragma once

#include <sluice/kernel/storage.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

namespace sluice::test {

using kernel::simd;
using kernel::simd_width;

/// A storage for two inputs a step, as bfloat16 dot products take them; here with plain floats.
struct pairs_storage {
  using scalar = float;
  using element = float;
  struct activation {
    float first, second;
  };
  struct vector {
    simd<float> first, second;
  };
  using sum = simd<float>;
  static constexpr index_t group = 2;

  static vector load(const float* w) {
    float first[simd_width<float>], second[simd_width<float>];
    for (index_t l = 0; l < simd_width<float>; ++l) first[l] = w[2 * l], second[l] = w[2 * l + 1];
    return {kernel::load(first), kernel::load(second)};
  }
  static sum multiply_add(activation a, const vector& w, const sum& s) {
    return kernel::multiply_add<float>(sum(a.second), w.second, kernel::multiply_add<float>(sum(a.first), w.first, s));
  }
  static activation pack(const float* x, float factor) { return {x[0] * factor, x[1] * factor}; }
};

/// Four 8-bit inputs a step, with a scale a row, summed as integers: the shape of the int8 dot-product instructions.
struct quads_storage {
  using scalar = float;
  using element = std::int8_t;
  using activation = std::array<std::int8_t, 4>;
  using vector = const std::int8_t*;
  using sum = simd<std::int32_t>;
  static constexpr index_t group = 4;

  static vector load(const std::int8_t* w) { return w; }
  static sum multiply_add(const activation& a, vector w, const sum& s) {
    std::int32_t sums[simd_width<std::int32_t>];
    s.store_unaligned(sums);
    for (std::size_t l = 0; l < sum::size; ++l)
      for (std::size_t g = 0; g < 4; ++g) sums[l] += a[g] * w[4 * l + g];
    return sum::load_unaligned(sums);
  }
  static float row_scale(const float* x, index_t n) {
    float most = 0;
    for (index_t i = 0; i < n; ++i) most = std::max(most, std::abs(x[i]));
    return most / 127;
  }
  static activation pack(const float* x, float factor) {
    activation a;
    for (std::size_t g = 0; g < 4; ++g) a[g] = static_cast<std::int8_t>(std::lround(x[g] * factor));
    return a;
  }
  static simd<float> finish(const sum& s) {
    std::int32_t sums[simd_width<std::int32_t>];
    float numbers[simd_width<float>];
    s.store_unaligned(sums);
    for (index_t l = 0; l < simd_width<float>; ++l) numbers[l] = static_cast<float>(sums[l]);
    return kernel::load(numbers);
  }
};
static_assert(WeightStorage<pairs_storage> && WeightStorage<quads_storage>);

}  // namespace sluice::test
