/// What a code stands for: one output's as a number, and those of all lanes of a panel in registers.
///
///   whole_levels<Zero>        q - Zero, 0 <= q - Zero + 128 <= 255
///   table_levels<Table, Half> one of sixteen whole numbers, or half of it (e2m1)
///   e4m3_levels               a float of eight bits; has no whole numbers, so no dot products of bytes
///
/// In registers codes come as quads, four neighbouring inputs a lane (kernel/format/bit_planes.hpp), and become bytes,
/// each 128 more than the whole number, or the floats of one of the four.
#pragma once

#include <sluice/kernel/format/small_floats.hpp>
#include <sluice/kernel/look_up.hpp>

#include <array>
#include <cstdint>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// Byte j of every lane, less 128, as floats.
inline kernel::simd<float> number_of_byte(const kernel::quads& bytes, int j) noexcept {
  const auto whole = kernel::cast_bits<std::int32_t>(bytes ^ kernel::quads(0x80808080U));
  return xsimd::to_float((whole << (24 - 8 * j)) >> 24);
}

/// Levels that are whole numbers: those of codes of four bits and less come from a table of floats where machines have
/// such.
template <typename Levels>
struct levels_in_registers {
  static kernel::simd<float> number(const kernel::quads& codes, int j) noexcept {
    if constexpr (kernel::has_number_tables && Levels::bits <= 4)
      return number_of_low_bits(codes >> (8 * j));
    else if constexpr (Levels::unit == 1.0F)
      return number_of_byte(Levels::bytes(codes), j);
    else
      return number_of_byte(Levels::bytes(codes), j) * kernel::simd<float>(Levels::unit);
  }
  /// Of codes of four bits and less in the lowest bits, whatever stands above them.
  static kernel::simd<float> number_of_low_bits(const kernel::quads& codes) noexcept {
    return kernel::look_up_numbers(table, codes);
  }

private:
  alignas(64) static constexpr std::array<float, 16> table = [] {
    std::array<float, 16> numbers{};
    for (std::size_t code = 0; code < 16; ++code)
      numbers[code] = Levels::value(static_cast<std::uint8_t>(code & ((1U << Levels::bits) - 1)));
    return numbers;
  }();
};

}  // namespace detail

/// Bits is that of the codes.
template <int Bits, int Zero>
struct whole_levels : detail::levels_in_registers<whole_levels<Bits, Zero>> {
  static_assert(Zero >= (1 << Bits) - 128 && Zero <= 128);
  static constexpr bool is_whole = true;
  static constexpr int bits = Bits;
  static constexpr float unit = 1;
  static constexpr int zero = Zero, lowest = -Zero, highest = (1 << Bits) - 1 - Zero;

  static constexpr int level(std::uint8_t code) noexcept { return int(code) - Zero; }
  static constexpr float value(std::uint8_t code) noexcept { return static_cast<float>(level(code)); }
  static kernel::quads bytes(const kernel::quads& codes) noexcept {
    return codes + kernel::quads(0x01010101U * static_cast<std::uint32_t>(128 - Zero));
  }
};

template <const std::array<std::int8_t, 16>& Table, bool Half>
struct table_levels : detail::levels_in_registers<table_levels<Table, Half>> {
  static constexpr bool is_whole = true;
  static constexpr int bits = 4;
  static constexpr float unit = Half ? 0.5F : 1.0F;

  static constexpr int level(std::uint8_t code) noexcept { return Table[code & 15U]; }
  static constexpr float value(std::uint8_t code) noexcept { return static_cast<float>(level(code)) * unit; }
  static kernel::quads bytes(const kernel::quads& codes) noexcept { return kernel::look_up_bytes(more_by_128, codes); }

private:
  static constexpr std::array<std::uint8_t, 16> more_by_128 = [] {
    std::array<std::uint8_t, 16> bytes{};
    for (std::size_t i = 0; i < 16; ++i) bytes[i] = static_cast<std::uint8_t>(Table[i] + 128);
    return bytes;
  }();
};

using e2m1_levels = table_levels<e2m1_doubled, true>;
using nonlinear_levels = table_levels<iq4_nl_levels, false>;

struct e4m3_levels {
  static constexpr bool is_whole = false;
  static constexpr int bits = 8;
  static constexpr float unit = 1;

  static constexpr float value(std::uint8_t code) noexcept { return e4m3_to_float(code); }
  /// Byte j of every lane.
  static kernel::simd<float> number(const kernel::quads& codes, int j) noexcept {
    const kernel::quads top = codes << (24 - 8 * j);
    const kernel::quads magnitude = (top & kernel::quads(0x7F000000U)) >> 4;
    // A fraction f without exponent counts 2^-9: 2^-6 (1 + f / 8) - 2^-6.
    const kernel::simd<float> without_exponent =
        kernel::cast_bits<float>(magnitude + kernel::quads(121U << 23)) - kernel::simd<float>(0x1p-6F);
    const kernel::quads normal = magnitude + kernel::quads(120U << 23);
    const kernel::quads number = kernel::select_lanes(magnitude < kernel::quads(1U << 23),
                                                      kernel::cast_bits<std::uint32_t>(without_exponent), normal);
    const kernel::quads or_nan =
        kernel::select_lanes(magnitude == kernel::quads(0x07F00000U), kernel::quads(0x7FC00000U), number);
    return kernel::cast_bits<float>(or_nan | (top & kernel::quads(0x80000000U)));
  }
};

}  // namespace sluice::inline SLUICE_ISA
