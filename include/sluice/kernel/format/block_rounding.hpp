/// How a block of numbers becomes codes and one scale: the rounding of formats whose blocks have one scale, or one and
/// a minimum, by rules without a search. Those with scales of scales search: kernel/format/nested_rounding.hpp.
///
///   nearest_rounding<Most>   scale = largest / Most as the format holds it, codes to nearest, ties to even
///   extreme_rounding         scale such that the largest number of either sign has the lowest code; ggml's Q4_0, Q5_0
///   even_rounding<Most>      scale = largest / Most before it is rounded, codes half away from zero; ggml's Q8_0, TQ2_0
///   range_rounding           from the smallest number to the largest; ggml's Q4_1, Q5_1
///   zero_rounding            from the smallest or 0 to the largest or 0, which has a code of its own
///   power_rounding           scale a power of two: MXFP4's
///   e4m3_rounding            scale = largest / 448, codes to nearest
///
/// A block with NaN is NaN all through. With nearest_rounding what is infinite stays so and all else of its block
/// becomes NaN, with the others a block with infinity is NaN. Blocks whose largest number is below 2^-118 count as
/// zero. Products and sums are rounded one after the other, as the formats' own quantisers do, whatever the compiler
/// may fuse.
#pragma once

#include <sluice/kernel/byte_panels.hpp>
#include <sluice/kernel/format/coded_block.hpp>
#include <sluice/kernel/format/small_floats.hpp>

#include <algorithm>
#include <cmath>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// A product that no compiler fuses with a sum.
inline float rounded_product(float a, float b) noexcept {
  volatile float product = a * b;
  return product;
}

/// The largest absolute value of a block; NaN if there is one.
inline float block_magnitude(const float* x, index_t count) noexcept {
  std::int32_t most = 0;
  for (index_t i = 0; i < count; ++i) most = (std::max)(most, bits_of(x[i]) & 0x7FFFFFFF);
  return std::bit_cast<float>(most);
}

/// Whether a block has numbers to round. If not it is zero or, with NaN and infinity, NaN: codes of zero, scale NaN.
inline bool is_rounded(float largest, std::uint8_t zero_code, coded_block& b) noexcept {
  if (is_ordinary_block(largest)) return true;
  b.codes.fill(zero_code);
  b.scale = b.minimum = is_zero_block(largest) ? 0.0F : quiet_nan<float>();
  return false;
}

/// Rounded to the nearest whole number, ties to even, of numbers below 2^22: what nearest_codes does, of one.
inline int nearest_whole(float x) noexcept { return bits_of(x + 0x1.8p23F) - bits_of(0x1.8p23F); }

inline std::uint8_t to_code(int code) noexcept { return static_cast<std::uint8_t>(code); }
/// Truncated after a half is added, as integers of floats are.
inline std::uint8_t truncated_code(float x, int most) noexcept {
  return to_code((std::min)(most, static_cast<int>(x)));
}

}  // namespace detail

template <typename Type, index_t Inputs, int Zero, int Most>
struct nearest_rounding {
  static void choose(const float* x, coded_block& b) noexcept {
    const float largest = detail::block_magnitude(x, Inputs);
    b.scale = to_number(to_element<Type>(detail::is_zero_block(largest) ? 0.0F : largest / Most));
    const bool is_ordinary = detail::is_ordinary_block(largest);
    const float inverse = is_ordinary && b.scale > 0 ? 1 / b.scale : 0.0F;
    constexpr index_t lanes = kernel::simd_width<float>;
    for (index_t i = 0; i < Inputs; i += lanes) {
      std::array<std::int32_t, as_size(lanes)> codes;
      detail::nearest_codes(kernel::load(x + i) * kernel::simd<float>(inverse), Most).store_unaligned(codes.data());
      for (index_t l = 0; l < lanes; ++l) {
        const std::int32_t bits = detail::bits_of(x[i + l]);
        // Where the scale is infinite a code of one keeps what was infinite.
        const bool is_infinite = (bits & 0x7FFFFFFF) == detail::infinity_bits<float>;
        const int code = is_ordinary ? codes[as_size(l)] : is_infinite ? (bits < 0 ? -1 : 1) : 0;
        b.codes[as_size(i + l)] = detail::to_code(code + Zero);
      }
    }
  }
};

template <int Zero>
struct extreme_rounding {
  static void choose(const float* x, coded_block& b) noexcept {
    const float largest = detail::block_magnitude(x, 32);
    if (!detail::is_rounded(largest, Zero, b)) {
      if (detail::is_zero_block(largest)) b.scale = -0.0F;  // 0 / -Zero
      return;
    }
    const float extreme = *std::find_if(x, x + 32, [&](float v) { return (std::abs)(v) == largest; });
    const float scale = extreme / -float(Zero), inverse = 1 / scale;
    for (index_t i = 0; i < 32; ++i)
      b.codes[as_size(i)] =
          detail::truncated_code(detail::rounded_product(x[i], inverse) + (float(Zero) + 0.5F), 2 * Zero - 1);
    b.scale = to_float(round_to<float16>(scale));
  }
};

template <index_t Inputs, int Zero, int Most>
struct even_rounding {
  static void choose(const float* x, coded_block& b) noexcept {
    const float largest = detail::block_magnitude(x, Inputs);
    if (!detail::is_rounded(largest, Zero, b)) return;
    const float scale = largest / Most, inverse = 1 / scale;
    for (index_t i = 0; i < Inputs; ++i) {
      const float product = detail::rounded_product(x[i], inverse);
      const float whole = std::trunc(product), rest = product - whole;
      b.codes[as_size(i)] = detail::to_code(static_cast<int>(whole) +
                                            (rest >= 0.5F    ? 1
                                             : rest <= -0.5F ? -1
                                                             : 0) +
                                            Zero);
    }
    b.scale = to_float(round_to<float16>(scale));
  }
};

template <int Most>
struct range_rounding {
  static void choose(const float* x, coded_block& b) noexcept {
    if (!detail::is_rounded(detail::block_magnitude(x, 32), 0, b)) return;
    const auto [low, high] = std::minmax_element(x, x + 32);
    const float scale = (*high - *low) / Most, inverse = scale > 0 ? 1 / scale : 0.0F;
    for (index_t i = 0; i < 32; ++i)
      b.codes[as_size(i)] = detail::truncated_code(detail::rounded_product(x[i] - *low, inverse) + 0.5F, Most);
    b.scale = to_float(round_to<float16>(scale));
    b.minimum = to_float(round_to<float16>(*low));
  }
};

/// Code `Zero` of the levels is their 0.
template <typename Type, index_t Inputs, int Bits, int Zero>
struct zero_rounding {
  static void choose(const float* x, coded_block& b) noexcept {
    constexpr int most = (1 << Bits) - 1;
    b.minima[0] = detail::to_code(128 - Zero);
    if (!detail::is_rounded(detail::block_magnitude(x, Inputs), 0, b)) return;
    const auto [low, high] = std::minmax_element(x, x + Inputs);
    const float least = (std::min)(*low, 0.0F);
    b.scale = to_number(to_element<Type>(((std::max)(*high, 0.0F) - least) / most));
    const float inverse = b.scale > 0 ? 1 / b.scale : 0.0F;
    const int zero = (std::min)(detail::nearest_whole(-least * inverse), most);
    b.minima[0] = detail::to_code(128 - Zero + zero);
    for (index_t i = 0; i < Inputs; ++i) {
      const int code = detail::nearest_whole(x[i] * inverse) + zero;
      b.codes[as_size(i)] = detail::to_code((std::clamp)(code, 0, most));
    }
  }
};

struct power_rounding {
  /// The first of the codes whose number is nearest.
  static std::uint8_t nearest(float x) noexcept {
    std::uint8_t best = 0;
    float least = (std::abs)(x);
    for (std::uint8_t code = 1; code < 16; ++code)
      if (const float distance = (std::abs)(e2m1_to_float(code) - x); distance < least) least = distance, best = code;
    return best;
  }
  static void choose(const float* x, coded_block& b) noexcept {
    const float largest = detail::block_magnitude(x, 32);
    b.scales[0] = 0;
    if (!detail::is_rounded(largest, 0, b)) {
      if (!detail::is_zero_block(largest)) b.scales[0] = 255;
      return;
    }
    // The largest code is 6 = 1.5 * 2^2; the exponent of an ordinary block is above 2.
    b.scales[0] = detail::to_code((detail::bits_of(largest) >> 23) - 2);
    const float inverse = 1 / e8m0_to_float(b.scales[0]);
    for (index_t i = 0; i < 32; ++i) b.codes[as_size(i)] = nearest(x[i] * inverse);
  }
};

template <index_t Inputs>
struct e4m3_rounding {
  static void choose(const float* x, coded_block& b) noexcept {
    const float largest = detail::block_magnitude(x, Inputs);
    if (!detail::is_rounded(largest, 0, b)) return;
    b.scale = largest / 448;
    for (index_t i = 0; i < Inputs; ++i) b.codes[as_size(i)] = round_to_e4m3(x[i] / b.scale);
  }
};

}  // namespace sluice::inline SLUICE_ISA
