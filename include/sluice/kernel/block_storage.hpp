/// Weights as codes of 8 or 4 bits with a scale for every 32 inputs of an output: read only, for inference and frozen
/// parts.
///
///   int8_blocks   w = scale q, q = -127 .. 127;  activations in 8 bits too, a scale a row and block; sums of a block are
///                 whole numbers, by dot-product instructions (kernel/dot_product.hpp)
///   int4_blocks   w = scale q, q = -7 .. 7;  decoded in registers, activations and arithmetic in float
///
///   scale = bfloat16(largest |w| of the block / largest q);  q = w / scale, rounded to nearest, ties to even
///
/// Scales of eight bits make every decoded weight a float exactly, and encoding decoded weights again gives the same codes
/// and scales. A block with NaN is NaN all through, one with infinity is NaN where it was zero and infinite elsewhere; a
/// block of activations likewise. Blocks whose largest number is below 2^-118 count as zero.
///
/// In memory a block is the L scales of its lanes and then its codes, in steps: four codes a lane, each plus 128, as the
/// instruction wants them; or words of eight codes a lane, each plus 8, the first input in the lowest bits.
#pragma once

#include <sluice/kernel/dot_product.hpp>
#include <sluice/kernel/storage.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace sluice::inline SLUICE_ISA {

namespace detail {

inline constexpr index_t scaled_inputs = 32;
/// Where a block counts as zero: smaller scales might have no inverse.
inline constexpr float smallest_block = 0x1p-118F;

/// The largest absolute value; NaN if one is NaN.
inline float largest_of_block(const float* x, index_t stride = 1) noexcept {
  std::int32_t most = 0;  // bits of absolute values are ordered as they are, NaN last
  for (index_t i = 0; i < scaled_inputs; ++i) most = (std::max)(most, bits_of(x[i * stride]) & 0x7FFFFFFF);
  return std::bit_cast<float>(most);
}

/// Whether a block with this largest absolute value counts as zero, or has a scale that numbers can be divided by.
inline bool is_zero_block(float largest) noexcept { return bits_of(largest) < bits_of(smallest_block); }
inline bool is_ordinary_block(float largest) noexcept {
  return !is_zero_block(largest) && bits_of(largest) < infinity_bits<float>;
}

/// x * inverse, rounded to the nearest whole number of -Most .. Most.
template <int Most>
int block_code(float x, float inverse) noexcept {
  // Adding 1.5 * 2^23 rounds to a whole number, ties to even, and leaves it in the lowest bits.
  return bits_of((std::clamp)(x * inverse, -float(Most), float(Most)) + 0x1.8p23F) - bits_of(0x1.8p23F);
}

/// What the storages with scales share: Most is the largest code.
template <int Most>
struct scaled_blocks {
  using scalar = float;
  using scales = kernel::simd<float>;
  static constexpr index_t lanes = kernel::simd_width<float>;
  static constexpr index_t scale_bytes = lanes * static_cast<index_t>(sizeof(bfloat16));

  static scales load_scales(const std::byte* block) noexcept {
    return kernel::load_widened(reinterpret_cast<const bfloat16*>(block));
  }

  /// Writes the scale of lane l and calls put(input, code) for a block's weights [32][L].
  template <typename Put>
  static void encode_lane(const float* numbers, index_t l, std::byte* block, Put&& put) noexcept {
    const float largest = largest_of_block(numbers + l, lanes);
    const bfloat16 scale = round_to<bfloat16>(is_zero_block(largest) ? 0.0F : largest / Most);
    std::memcpy(block + l * index_t(sizeof scale), &scale, sizeof scale);
    const bool is_ordinary = is_ordinary_block(largest);
    const float inverse = is_ordinary ? 1 / to_float(scale) : 0.0F;
    for (index_t i = 0; i < scaled_inputs; ++i) {
      const float w = numbers[i * lanes + l];
      // Where the scale is infinite a code of one keeps what was infinite.
      const bool is_infinite = (bits_of(w) & 0x7FFFFFFF) == infinity_bits<float>;
      const int code = is_ordinary ? block_code<Most>(w, inverse) : is_infinite ? (w < 0 ? -1 : 1) : 0;
      put(i, code);
    }
  }
};

}  // namespace detail

struct int8_blocks : detail::scaled_blocks<127> {
  using activation = kernel::quad;
  using partial = kernel::simd<std::int32_t>;
  static constexpr index_t group = 4;
  static constexpr index_t block = detail::scaled_inputs / group;
  static constexpr index_t step_bytes = 4 * lanes;
  static constexpr index_t block_bytes = scale_bytes + block * step_bytes;

  /// Of a row's block: activations are scale q; codes are 128 too large, so sums begin at -128 times the sum of q.
  struct factor {
    float scale;
    std::int32_t start;
  };

  struct cursor {
    const std::byte* address = nullptr;
    const std::byte* scales_at = nullptr;

    void enter() noexcept {
      scales_at = address;
      address += scale_bytes;
    }
    kernel::quads next() noexcept {
      const kernel::quads weights = kernel::load_quads(address);
      address += step_bytes;
      return weights;
    }
    scales finish(const partial& sum, const factor& f, const scales& total) const noexcept {
      return kernel::multiply_add<float>(xsimd::to_float(sum) * scales(f.scale), load_scales(scales_at), total);
    }
  };

  static constexpr index_t bytes(index_t steps) noexcept { return steps / block * block_bytes; }
  static cursor at(const std::byte* address) noexcept { return {address, address}; }
  static partial start(const factor& f) noexcept { return partial(f.start); }
  static partial multiply_add(const activation& a, const kernel::quads& w, const partial& sum) noexcept {
    return kernel::add_dot_product(sum, w, a);
  }

  static factor pack_block(const float* x, float multiplier, activation* units) noexcept {
    std::array<float, as_size(detail::scaled_inputs)> numbers;
    for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = x[i] * multiplier;
    const float largest = detail::largest_of_block(numbers.data());
    if (!detail::is_ordinary_block(largest)) {
      std::fill_n(units, block, activation{});
      return {detail::is_zero_block(largest) ? 0.0F : largest, 0};
    }
    const float inverse = 127 / largest;
    std::int32_t sum = 0;
    for (index_t u = 0; u < block; ++u)
      for (std::size_t g = 0; g < as_size(group); ++g) {
        const int code = detail::block_code<127>(numbers[as_size(u * group) + g], inverse);
        units[u][g] = static_cast<std::int8_t>(code);
        sum += code;
      }
    return {largest / 127, -128 * sum};
  }

  static void encode(const float* numbers, index_t first, index_t last, std::byte* panel) noexcept {
    std::byte* to = panel + bytes(first / group);
    for (index_t i = first; i < last; i += detail::scaled_inputs, to += block_bytes)
      for (index_t l = 0; l < lanes; ++l)
        encode_lane(numbers + (i - first) * lanes, l, to, [&](index_t input, int code) {
          to[scale_bytes + input / group * step_bytes + l * group + input % group] = static_cast<std::byte>(code + 128);
        });
  }
  static void decode(const std::byte* panel, index_t first, index_t last, float* numbers) noexcept {
    for (index_t i = first; i < last; ++i, numbers += lanes) {
      const std::byte* const from = panel + i / detail::scaled_inputs * block_bytes;
      const index_t input = i % detail::scaled_inputs;
      const std::byte* const codes = from + scale_bytes + input / group * step_bytes + input % group;
      for (index_t l = 0; l < lanes; ++l) numbers[l] = static_cast<float>(static_cast<int>(codes[l * group]) - 128);
      kernel::store<float>(numbers, kernel::load(numbers) * load_scales(from));
    }
  }
};

struct int4_blocks : detail::scaled_blocks<7> {
  using activation = float;
  using words = kernel::simd<std::uint32_t>;
  static constexpr index_t group = 1;
  static constexpr index_t block = detail::scaled_inputs;
  static constexpr index_t word_codes = 8;
  static constexpr index_t word_bytes = 4 * lanes;
  static constexpr index_t block_bytes = scale_bytes + block / word_codes * word_bytes;

  struct cursor {
    const std::byte* address = nullptr;
    index_t left = 0;  ///< steps of the block at hand
    words codes{};
    scales scale{};

    scales next() noexcept {
      if (left % word_codes == 0) {
        if (left == 0) {
          left = block;
          scale = load_scales(address);
          address += scale_bytes;
        }
        codes = kernel::load_quads(address);
        address += word_bytes;
      }
      --left;
      const auto code = kernel::cast_bits<std::int32_t>(codes & words(15U)) - kernel::simd<std::int32_t>(8);
      codes = codes >> 4;
      return xsimd::to_float(code) * scale;
    }
  };

  static constexpr index_t bytes(index_t steps) noexcept { return (steps + block - 1) / block * block_bytes; }
  static cursor at(const std::byte* address) noexcept { return {address}; }
  static scales multiply_add(activation a, const scales& w, const scales& sum) noexcept {
    return kernel::multiply_add<float>(scales(a), w, sum);
  }
  static activation pack(const float* x, float multiplier) noexcept { return *x * multiplier; }

  static void encode(const float* numbers, index_t first, index_t last, std::byte* panel) noexcept {
    std::byte* to = panel + bytes(first);
    for (index_t i = first; i < last; i += block, to += block_bytes)
      for (index_t l = 0; l < lanes; ++l) {
        std::array<std::uint32_t, as_size(block / word_codes)> lane_words{};
        encode_lane(numbers + (i - first) * lanes, l, to, [&](index_t input, int code) {
          lane_words[as_size(input / word_codes)] |= static_cast<std::uint32_t>(code + 8) << (4 * (input % word_codes));
        });
        for (std::size_t w = 0; w < lane_words.size(); ++w)
          std::memcpy(to + scale_bytes + index_t(w) * word_bytes + 4 * l, &lane_words[w], 4);
      }
  }
  static void decode(const std::byte* panel, index_t first, index_t last, float* numbers) noexcept {
    cursor weights = at(panel + bytes(first / block * block));
    for (index_t i = first / block * block; i < last; ++i) {
      const scales w = weights.next();
      if (i < first) continue;
      kernel::store<float>(numbers, w);
      numbers += lanes;
    }
  }
};

static_assert(WeightStorage<int8_blocks> && WeightStorage<int4_blocks>);

}  // namespace sluice::inline SLUICE_ISA
