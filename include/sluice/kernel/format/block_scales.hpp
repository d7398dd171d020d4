/// The scales of a block: what a format multiplies its codes with, and adds.
///
///   group_scales<Type, Group>          s = scale, one for Group inputs
///   group_scales_and_minima<Type, G>   s = scale, b = minimum
///   group_scales_and_zeros<Type, G>    s (m - z), z = minima[0] - 128 a whole number
///   exponents                          s = 2^(scales[0] - 127), one for 32 inputs
///   nested_scales<Planes, Zero, Run>   s = scale (scales[r] - Zero), for Run inputs of 256
///   nested_scales_and_minima<...>      and b = - minimum minima[r]
///   float_scales<Inputs, HasFactor>    s = scale e4m3(scales[r]), for 16 inputs
///
/// Type is float16, bfloat16 or float. One output's are read from a coded_block; in a panel those of L outputs stand
/// side by side, as many bytes as the format has. Every product but those with float scales is exact in float.
#pragma once

#include <sluice/core/half.hpp>
#include <sluice/kernel/format/bit_planes.hpp>
#include <sluice/kernel/format/code_levels.hpp>
#include <sluice/kernel/format/coded_block.hpp>
#include <sluice/kernel/widen.hpp>

#include <algorithm>
#include <cstring>

namespace sluice::inline SLUICE_ISA {

/// Of all lanes, for a run of inputs. What a kind of scales does not have is not set.
struct scale_terms {
  kernel::simd<float> scale, minimum, zero;
};

namespace detail {

template <typename Type>
inline constexpr index_t lane_bytes = kernel::simd_width<float>* index_t(sizeof(Type));

template <typename Type>
void put_lane(float number, index_t lane, std::byte* to) noexcept {
  const Type element = to_element<Type>(number);
  std::memcpy(to + lane * index_t(sizeof element), &element, sizeof element);
}
template <typename Type>
float get_lane(const std::byte* from, index_t lane) noexcept {
  Type element;
  std::memcpy(&element, from + lane * index_t(sizeof element), sizeof element);
  return to_number(element);
}
template <typename Type>
kernel::simd<float> load_lanes(const std::byte* from) noexcept {
  return kernel::load_widened(reinterpret_cast<const Type*>(from));
}
inline kernel::simd<float> to_numbers(const kernel::quads& whole) noexcept {
  return xsimd::to_float(kernel::cast_bits<std::int32_t>(whole));
}

}  // namespace detail

template <typename Type, index_t Group>
struct group_scales {
  static_assert(Group == 16 || Group % 32 == 0, "sluice: groups are 16 inputs or a multiple of 32");
  static constexpr bool has_minimum = false, has_zero = false;
  static constexpr index_t inputs = Group, run = Group == 16 ? 16 : 32;
  static constexpr index_t bytes = detail::lane_bytes<Type>;

  static constexpr float scale(const coded_block& b, index_t) noexcept { return b.scale; }
  static constexpr float minimum(const coded_block&, index_t) noexcept { return 0; }
  static void put(const coded_block& b, index_t lane, std::byte* to) noexcept {
    detail::put_lane<Type>(b.scale, lane, to);
  }
  static void get(const std::byte* from, index_t lane, coded_block& b) noexcept {
    b.scale = detail::get_lane<Type>(from, lane);
  }
  static scale_terms terms(const std::byte* from, index_t) noexcept { return {detail::load_lanes<Type>(from), {}, {}}; }
};

template <typename Type, index_t Group>
struct group_scales_and_minima : group_scales<Type, Group> {
  using base = group_scales<Type, Group>;
  static constexpr bool has_minimum = true;
  static constexpr index_t bytes = 2 * base::bytes;

  static constexpr float minimum(const coded_block& b, index_t) noexcept { return b.minimum; }
  static void put(const coded_block& b, index_t lane, std::byte* to) noexcept {
    base::put(b, lane, to);
    detail::put_lane<Type>(b.minimum, lane, to + base::bytes);
  }
  static void get(const std::byte* from, index_t lane, coded_block& b) noexcept {
    base::get(from, lane, b);
    b.minimum = detail::get_lane<Type>(from + base::bytes, lane);
  }
  static scale_terms terms(const std::byte* from, index_t) noexcept {
    return {detail::load_lanes<Type>(from), detail::load_lanes<Type>(from + base::bytes), {}};
  }
};

template <typename Type, index_t Group>
struct group_scales_and_zeros : group_scales<Type, Group> {
  using base = group_scales<Type, Group>;
  static constexpr bool has_zero = true;
  static constexpr index_t bytes = base::bytes + detail::lane_bytes<std::uint8_t>;

  static constexpr float zero(const coded_block& b) noexcept { return static_cast<float>(b.minima[0]) - 128; }
  static void put(const coded_block& b, index_t lane, std::byte* to) noexcept {
    base::put(b, lane, to);
    to[base::bytes + lane] = std::byte{b.minima[0]};
  }
  static void get(const std::byte* from, index_t lane, coded_block& b) noexcept {
    base::get(from, lane, b);
    b.minima[0] = std::to_integer<std::uint8_t>(from[base::bytes + lane]);
  }
  static scale_terms terms(const std::byte* from, index_t) noexcept {
    const kernel::quads zeros = kernel::load_widened(reinterpret_cast<const std::uint8_t*>(from + base::bytes));
    return {detail::load_lanes<Type>(from), {}, detail::to_numbers(zeros) - kernel::simd<float>(128.0F)};
  }
};

struct exponents {
  static constexpr bool has_minimum = false, has_zero = false;
  static constexpr index_t inputs = 32, run = 32, bytes = detail::lane_bytes<std::uint8_t>;

  static constexpr float scale(const coded_block& b, index_t) noexcept { return e8m0_to_float(b.scales[0]); }
  static constexpr float minimum(const coded_block&, index_t) noexcept { return 0; }
  static void put(const coded_block& b, index_t lane, std::byte* to) noexcept { to[lane] = std::byte{b.scales[0]}; }
  static void get(const std::byte* from, index_t lane, coded_block& b) noexcept {
    b.scales[0] = std::to_integer<std::uint8_t>(from[lane]);
  }
  static scale_terms terms(const std::byte* from, index_t) noexcept {
    const kernel::quads e = kernel::load_widened(reinterpret_cast<const std::uint8_t*>(from));
    // 2^-127 is half of the smallest normal number, 255 no number at all.
    const kernel::quads bits = kernel::select_lanes(e == kernel::quads(0U), kernel::quads(1U << 22), e << 23);
    return {kernel::cast_bits<float>(kernel::select_lanes(e == kernel::quads(255U), kernel::quads(0x7FC00000U), bits)),
            {},
            {}};
  }
};

template <typename Planes, int Zero, index_t Run>
struct nested_scales {
  static constexpr bool has_minimum = false, has_zero = false;
  static constexpr index_t inputs = 256, run = Run, runs = inputs / run;
  static_assert(Planes::count == runs);
  static constexpr index_t codes_at = detail::lane_bytes<float16>, bytes = codes_at + Planes::bytes;
  static constexpr int zero_code = Zero, most_code = (1 << Planes::bits) - 1;

  static constexpr float scale(const coded_block& b, index_t r) noexcept {
    return b.scale * static_cast<float>(int(b.scales[as_size(r)]) - Zero);
  }
  static constexpr float minimum(const coded_block&, index_t) noexcept { return 0; }
  static void put(const coded_block& b, index_t lane, std::byte* to) noexcept {
    detail::put_lane<float16>(b.scale, lane, to);
    Planes::put(b.scales.data(), lane, to + codes_at);
  }
  static void get(const std::byte* from, index_t lane, coded_block& b) noexcept {
    b.scale = detail::get_lane<float16>(from, lane);
    Planes::get(from + codes_at, lane, b.scales.data());
  }
  static scale_terms terms(const std::byte* from, index_t r) noexcept {
    const auto code = detail::to_numbers(Planes::code(from + codes_at, r)) - kernel::simd<float>(float(Zero));
    return {detail::load_lanes<float16>(from) * code, {}, {}};
  }
};

/// Planes has the codes of all scales and then those of all minima.
template <typename Planes, index_t Run>
struct nested_scales_and_minima {
  static constexpr bool has_minimum = true, has_zero = false;
  static constexpr index_t inputs = 256, run = Run, runs = inputs / run;
  static_assert(Planes::count == 2 * runs);
  static constexpr index_t minimum_at = detail::lane_bytes<float16>, codes_at = 2 * minimum_at,
                           bytes = codes_at + Planes::bytes;
  static constexpr int zero_code = 0, most_code = (1 << Planes::bits) - 1;

  static constexpr float scale(const coded_block& b, index_t r) noexcept {
    return b.scale * static_cast<float>(b.scales[as_size(r)]);
  }
  static constexpr float minimum(const coded_block& b, index_t r) noexcept {
    return -b.minimum * static_cast<float>(b.minima[as_size(r)]);
  }
  static void put(const coded_block& b, index_t lane, std::byte* to) noexcept {
    detail::put_lane<float16>(b.scale, lane, to);
    detail::put_lane<float16>(b.minimum, lane, to + minimum_at);
    std::array<std::uint8_t, as_size(2 * runs)> codes;
    std::copy_n(b.minima.begin(), runs, std::copy_n(b.scales.begin(), runs, codes.begin()));
    Planes::put(codes.data(), lane, to + codes_at);
  }
  static void get(const std::byte* from, index_t lane, coded_block& b) noexcept {
    b.scale = detail::get_lane<float16>(from, lane);
    b.minimum = detail::get_lane<float16>(from + minimum_at, lane);
    std::array<std::uint8_t, as_size(2 * runs)> codes;
    Planes::get(from + codes_at, lane, codes.data());
    std::copy_n(codes.begin(), runs, b.scales.begin());
    std::copy_n(codes.begin() + runs, runs, b.minima.begin());
  }
  static scale_terms terms(const std::byte* from, index_t r) noexcept {
    const kernel::simd<float> zero(0.0F);
    return {detail::load_lanes<float16>(from) * detail::to_numbers(Planes::code(from + codes_at, r)),
            (zero - detail::load_lanes<float16>(from + minimum_at)) *
                detail::to_numbers(Planes::code(from + codes_at, runs + r)),
            {}};
  }
};

/// NVFP4's: a scale of eight bits for 16 inputs, and a float for Inputs if the format has a factor of a tensor.
template <index_t Inputs, bool HasFactor>
struct float_scales {
  static constexpr bool has_factor = HasFactor;
  static constexpr bool has_minimum = false, has_zero = false;
  static constexpr index_t inputs = Inputs, run = 16, runs = inputs / run;
  using planes = bit_planes<runs, 8>;
  static constexpr index_t codes_at = HasFactor ? detail::lane_bytes<float> : 0, bytes = codes_at + planes::bytes;

  static constexpr float scale(const coded_block& b, index_t r) noexcept {
    const float s = e4m3_to_float(b.scales[as_size(r)]);
    return HasFactor ? b.scale * s : s;
  }
  static constexpr float minimum(const coded_block&, index_t) noexcept { return 0; }
  static void put(const coded_block& b, index_t lane, std::byte* to) noexcept {
    if constexpr (HasFactor) detail::put_lane<float>(b.scale, lane, to);
    planes::put(b.scales.data(), lane, to + codes_at);
  }
  static void get(const std::byte* from, index_t lane, coded_block& b) noexcept {
    if constexpr (HasFactor) b.scale = detail::get_lane<float>(from, lane);
    planes::get(from + codes_at, lane, b.scales.data());
  }
  static scale_terms terms(const std::byte* from, index_t r) noexcept {
    const kernel::simd<float> scale = e4m3_levels::number(planes::code(from + codes_at, r), 0);
    if constexpr (HasFactor)
      return {detail::load_lanes<float>(from) * scale, {}, {}};
    else
      return {scale, {}, {}};
  }
};

}  // namespace sluice::inline SLUICE_ISA
