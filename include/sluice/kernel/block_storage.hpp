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
/// and scales. A block with NaN is NaN all through; in one with infinity all that is not infinite becomes NaN. A block of
/// activations with either makes its row's sums NaN. Blocks whose largest number is below 2^-118 count as zero.
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
#include <numeric>

namespace sluice::inline SLUICE_ISA {

namespace detail {

inline constexpr index_t scaled_inputs = 32;
/// Where a block counts as zero: smaller scales might have no inverse.
inline constexpr float smallest_block = 0x1p-118F;

/// Whether a block with this largest absolute value counts as zero, or has a scale that numbers can be divided by.
inline bool is_zero_block(float largest) noexcept { return bits_of(largest) < bits_of(smallest_block); }
inline bool is_ordinary_block(float largest) noexcept {
  return !is_zero_block(largest) && bits_of(largest) < infinity_bits<float>;
}

/// Rounded to the nearest whole numbers of -Most .. Most.
template <int Most>
kernel::simd<std::int32_t> block_codes(const kernel::simd<float>& x) noexcept {
  using vector = kernel::simd<float>;
  // Adding 1.5 * 2^23 rounds to a whole number, ties to even, and leaves it in the lowest bits.
  const vector within = (xsimd::min)((xsimd::max)(x, vector(-float(Most))), vector(float(Most)));
  return kernel::cast_bits<std::int32_t>(within + vector(0x1.8p23F)) - kernel::simd<std::int32_t>(bits_of(0x1.8p23F));
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

  /// Writes the scales of a block's weights [32][L] and calls put(input, lane, code) for each.
  template <typename Put>
  static void encode_block(const float* numbers, std::byte* block, Put&& put) noexcept {
    std::array<float, as_size(lanes)> largest, inverse;
    for (index_t l = 0; l < lanes; ++l) {
      std::int32_t most = 0;  // bits of absolute values are ordered as they are, NaN last
      for (index_t i = 0; i < scaled_inputs; ++i) most = (std::max)(most, bits_of(numbers[i * lanes + l]) & 0x7FFFFFFF);
      largest[as_size(l)] = std::bit_cast<float>(most);
      const bfloat16 scale = round_to<bfloat16>(is_zero_block(largest[as_size(l)]) ? 0.0F : largest[as_size(l)] / Most);
      std::memcpy(block + l * index_t(sizeof scale), &scale, sizeof scale);
      inverse[as_size(l)] = is_ordinary_block(largest[as_size(l)]) ? 1 / to_float(scale) : 0.0F;
    }
    for (index_t i = 0; i < scaled_inputs; ++i) {
      std::array<std::int32_t, as_size(lanes)> codes;
      block_codes<Most>(kernel::load(numbers + i * lanes) * kernel::load(inverse.data())).store_unaligned(codes.data());
      for (index_t l = 0; l < lanes; ++l) {
        const float w = numbers[i * lanes + l];
        // Where the scale is infinite a code of one keeps what was infinite.
        const bool is_infinite = (bits_of(w) & 0x7FFFFFFF) == infinity_bits<float>;
        if (!is_ordinary_block(largest[as_size(l)])) codes[as_size(l)] = is_infinite ? (bits_of(w) < 0 ? -1 : 1) : 0;
        put(i, l, codes[as_size(l)]);
      }
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
    using words = kernel::simd<std::int32_t>;
    std::array<scales, as_size(detail::scaled_inputs / lanes)> numbers;
    words most(0);
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      numbers[i] = kernel::load(x + index_t(i) * lanes) * scales(multiplier);
      most = (xsimd::max)(most, kernel::cast_bits<std::int32_t>(numbers[i]) & words(0x7FFFFFFF));
    }
    std::array<std::int32_t, as_size(detail::scaled_inputs)> codes;
    most.store_unaligned(codes.data());
    const auto largest = std::bit_cast<float>(*std::max_element(codes.begin(), codes.begin() + lanes));
    if (!detail::is_ordinary_block(largest)) {
      std::fill_n(units, block, activation{});
      return {detail::is_zero_block(largest) ? 0.0F : largest, 0};
    }
    const scales inverse(127 / largest);
    words sum(0);
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      const words code = detail::block_codes<127>(numbers[i] * inverse);
      code.store_unaligned(codes.data() + index_t(i) * lanes);
      sum = sum + code;
    }
    for (std::size_t i = 0; i < codes.size(); ++i)
      units[i / as_size(group)][i % as_size(group)] = static_cast<std::int8_t>(codes[i]);
    sum.store_unaligned(codes.data());
    return {largest / 127, -128 * std::accumulate(codes.begin(), codes.begin() + lanes, 0)};
  }

  static void encode(const float* numbers, index_t first, index_t last, std::byte* panel) noexcept {
    std::byte* to = panel + bytes(first / group);
    for (index_t i = first; i < last; i += detail::scaled_inputs, to += block_bytes)
      encode_block(numbers + (i - first) * lanes, to, [&](index_t input, index_t l, int code) {
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
    for (index_t i = first; i < last; i += block, to += block_bytes) {
      std::array<std::uint32_t, as_size(block / word_codes * lanes)> packed{};
      encode_block(numbers + (i - first) * lanes, to, [&](index_t input, index_t l, int code) {
        packed[as_size(input / word_codes * lanes + l)] |= static_cast<std::uint32_t>(code + 8) << (4 * (input % word_codes));
      });
      std::memcpy(to + scale_bytes, packed.data(), sizeof packed);
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
