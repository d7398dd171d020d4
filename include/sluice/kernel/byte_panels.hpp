/// Tiles of bytes: weights of 8 bits and activations of 8 bits, whose dot products are whole numbers.
///
///   y += a s sum of w q  +  b a sum of q     over a run of 16 or 32 inputs;  w = -128 .. 127, q = -127 .. 127
///   s, b   of an output and run: scale and minimum of its weights, s w + b
///   a      of a row and run: largest |x| / 127;  q = x / a, rounded to nearest, ties to even
///
/// What storages of whole numbers expand their panels to (kernel/storage.hpp). A run of a panel is L scales, L minima
/// if there are any, and its weights in steps: four bytes a lane, each plus 128, as the instruction wants them. A row's
/// run with NaN or infinity makes its sums NaN; one whose largest number is below 2^-118 counts as zero.
#pragma once

#include <sluice/kernel/dot_product.hpp>
#include <sluice/kernel/storage.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// Where a block counts as zero: smaller scales might have no inverse.
inline constexpr float smallest_block = 0x1p-118F;

/// Whether a block with this largest absolute value counts as zero, or has a scale that numbers can be divided by.
inline bool is_zero_block(float largest) noexcept { return bits_of(largest) < bits_of(smallest_block); }
inline bool is_ordinary_block(float largest) noexcept {
  return !is_zero_block(largest) && bits_of(largest) < infinity_bits<float>;
}

/// Rounded to the nearest whole numbers of -most .. most.
inline kernel::simd<std::int32_t> nearest_codes(const kernel::simd<float>& x, float most) noexcept {
  using vector = kernel::simd<float>;
  // Adding 1.5 * 2^23 rounds to a whole number, ties to even, and leaves it in the lowest bits.
  const vector within = (xsimd::min)((xsimd::max)(x, vector(-most)), vector(most));
  return kernel::cast_bits<std::int32_t>(within + vector(0x1.8p23F)) - kernel::simd<std::int32_t>(bits_of(0x1.8p23F));
}

/// The largest absolute value of `count` numbers, whole vectors of them; NaN if there is one.
inline float largest_magnitude(const float* x, index_t count) noexcept {
  using words = kernel::simd<std::int32_t>;
  constexpr index_t lanes = kernel::simd_width<float>;
  words most(0);  // bits of absolute values are ordered as they are, NaN last
  for (index_t i = 0; i < count; i += lanes)
    most = (xsimd::max)(most, kernel::cast_bits<std::int32_t>(kernel::load(x + i)) & words(0x7FFFFFFF));
  return std::bit_cast<float>(
      kernel::fold_lanes<std::int32_t>(most, [](const words& a, const words& b) { return (xsimd::max)(a, b); }));
}

}  // namespace detail

namespace detail {

/// Of a row's run: weights are 128 too large, so sums begin at -128 times the sum of q.
struct byte_run_factor {
  float scale;
  std::int32_t start;
  float sum;  ///< scale times the sum of q
};

}  // namespace detail

template <index_t Run, bool HasMinimum>
struct byte_panels {
  using packing = byte_panels<Run, false>;
  using scalar = float;
  using vector = kernel::simd<float>;
  using activation = kernel::quad;
  using partial = kernel::simd<std::int32_t>;
  static constexpr index_t lanes = kernel::simd_width<float>;
  static constexpr index_t group = 4;
  static constexpr index_t block = Run / group;
  static constexpr index_t vector_bytes = 4 * lanes;
  static constexpr index_t codes_at = (HasMinimum ? 2 : 1) * vector_bytes;
  static constexpr index_t block_bytes = codes_at + block * vector_bytes;

  using factor = detail::byte_run_factor;

  struct cursor {
    const std::byte* address = nullptr;

    void enter() noexcept { address += codes_at; }
    kernel::quads next() noexcept {
      const kernel::quads weights = kernel::load_quads(address);
      address += vector_bytes;
      return weights;
    }
    /// The scales, from where they lie: tall tiles have no registers for them.
    const float* leave() const noexcept { return reinterpret_cast<const float*>(address - block_bytes); }
    static vector finish(const partial& sum, const factor& f, const float* scales, const vector& total) noexcept {
      const vector scaled =
          kernel::multiply_add<float>(xsimd::to_float(sum) * vector(f.scale), kernel::load(scales), total);
      if constexpr (HasMinimum)
        return kernel::multiply_add<float>(kernel::load(scales + lanes), vector(f.sum), scaled);
      else
        return scaled;
    }
  };

  static constexpr index_t bytes(index_t steps) noexcept { return steps / block * block_bytes; }
  static cursor at(const std::byte* address) noexcept { return {address}; }
  static partial start(const factor& f) noexcept { return partial(f.start); }
  static partial multiply_add(const activation& a, const kernel::quads& w, const partial& sum) noexcept {
    return kernel::add_dot_product(sum, w, a);
  }

  static factor pack_block(const float* x, float multiplier, activation* units) noexcept {
    constexpr index_t vectors = (Run + lanes - 1) / lanes;
    alignas(64) std::array<float, as_size(vectors * lanes)> numbers{};
    alignas(64) std::array<std::int32_t, as_size(vectors * lanes)> codes;
    for (index_t i = 0; i < Run; ++i) numbers[as_size(i)] = x[i] * multiplier;
    const float largest = detail::largest_magnitude(numbers.data(), vectors * lanes);
    if (!detail::is_ordinary_block(largest)) {
      std::fill_n(units, block, activation{});
      return {detail::is_zero_block(largest) ? 0.0F : largest, 0,
              detail::is_zero_block(largest) ? 0.0F : quiet_nan<float>()};
    }
    const vector inverse(127 / largest);
    partial sum(0);
    for (index_t i = 0; i < vectors * lanes; i += lanes) {
      const partial code = detail::nearest_codes(kernel::load(numbers.data() + i) * inverse, 127);
      code.store_unaligned(codes.data() + i);
      sum = sum + code;
    }
    alignas(64) std::array<std::int8_t, as_size(Run)> narrow;
    for (index_t i = 0; i < Run; ++i) narrow[as_size(i)] = static_cast<std::int8_t>(codes[as_size(i)]);
    std::memcpy(units, narrow.data(), sizeof narrow);
    const std::int32_t total =
        kernel::fold_lanes<std::int32_t>(sum, [](const partial& a, const partial& b) { return a + b; });
    const float scale = largest / 127;
    return {scale, -128 * total, scale * static_cast<float>(total)};
  }
};

static_assert(TileStorage<byte_panels<32, false>> && TileStorage<byte_panels<16, true>>);

}  // namespace sluice::inline SLUICE_ISA
