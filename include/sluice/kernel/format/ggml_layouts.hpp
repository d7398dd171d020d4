/// How ggml lays a block down in bytes, type by type.
///
///   ggml_layout<type>::unpack(bytes, block)   codes and scales as they are, into a coded_block of zeros;
///   ggml_layout<type>::pack(block, bytes)     and back, into bytes of zeros;  ::format is the format that they are of
///
/// Types: q4_0 q4_1 q5_0 q5_1 q8_0, q2_K to q6_K, iq4_nl, iq4_xs, mxfp4, nvfp4, tq1_0 and tq2_0 (which share a format).
/// Numbers of two bytes are little-endian. NVFP4's scales have no sign, their highest bit means nothing, and the codes 0
/// and 0x7F mean 0. What is packed unpacks to the same block; bytes that are unpacked pack to the same bytes, but for
/// NVFP4's 0x7F and highest bits, and bytes of tq1_0 that are not made of trits.
#pragma once

#include <sluice/kernel/format/formats.hpp>
#include <sluice/kernel/format/ggml_types.hpp>

#include <array>
#include <cstddef>
#include <cstdint>

namespace sluice::inline SLUICE_ISA {

namespace detail {

inline float half_at(const std::uint8_t* at) noexcept {
  return to_float(float16{static_cast<std::uint16_t>(at[0] | at[1] << 8)});
}
inline void put_half(float number, std::uint8_t* at) noexcept {
  const std::uint16_t bits = round_to<float16>(number).bits;
  at[0] = static_cast<std::uint8_t>(bits), at[1] = static_cast<std::uint8_t>(bits >> 8);
}

/// `count` codes of `bits` bits that are spread over `width` bytes: code i lies in byte i % width, i / width fields
/// from the lowest. The bits go `above` those that a code has already.
inline void take_fields(const std::uint8_t* bytes, index_t width, int bits, index_t count, int above,
                        std::uint8_t* codes) noexcept {
  const unsigned mask = (1U << bits) - 1;
  for (index_t i = 0; i < count; ++i)
    codes[i] = to_code(codes[i] | int((unsigned(bytes[i % width]) >> (bits * int(i / width)) & mask) << above));
}
inline void put_fields(const std::uint8_t* codes, index_t width, int bits, index_t count, int above,
                       std::uint8_t* bytes) noexcept {
  const unsigned mask = (1U << bits) - 1;
  for (index_t i = 0; i < count; ++i)
    bytes[i % width] = to_code(bytes[i % width] | int((unsigned(codes[i]) >> above & mask) << (bits * int(i / width))));
}
/// The same, `part` codes after `part` codes, each with bytes of its own.
inline void take_parts(const std::uint8_t* bytes, index_t part, index_t width, int bits, index_t count, int above,
                       std::uint8_t* codes) noexcept {
  for (index_t i = 0; i < count; i += part) take_fields(bytes + i / part * width, width, bits, part, above, codes + i);
}
inline void put_parts(const std::uint8_t* codes, index_t part, index_t width, int bits, index_t count, int above,
                      std::uint8_t* bytes) noexcept {
  for (index_t i = 0; i < count; i += part) put_fields(codes + i, width, bits, part, above, bytes + i / part * width);
}

/// Little-endian bits of code i.
inline void take_bits(const std::uint8_t* bytes, index_t count, int above, std::uint8_t* codes) noexcept {
  for (index_t i = 0; i < count; ++i) codes[i] = to_code(codes[i] | (bytes[i / 8] >> (i % 8) & 1) << above);
}
inline void put_bits(const std::uint8_t* codes, index_t count, int above, std::uint8_t* bytes) noexcept {
  for (index_t i = 0; i < count; ++i) bytes[i / 8] = to_code(bytes[i / 8] | (codes[i] >> above & 1) << (i % 8));
}

/// One scale, perhaps a minimum, perhaps a fifth bit, and nibbles of weights j and j + 16.
template <typename Format, bool HasMinimum, bool HasFifthBit>
struct nibble_layout {
  using format = Format;
  static constexpr index_t bits_at = HasMinimum ? 4 : 2, codes_at = bits_at + (HasFifthBit ? 4 : 0);

  static void unpack(const std::uint8_t* from, coded_block& b) noexcept {
    b.scale = half_at(from);
    if (HasMinimum) b.minimum = half_at(from + 2);
    take_fields(from + codes_at, 16, 4, 32, 0, b.codes.data());
    if (HasFifthBit) take_bits(from + bits_at, 32, 4, b.codes.data());
  }
  static void pack(const coded_block& b, std::uint8_t* to) noexcept {
    put_half(b.scale, to);
    if (HasMinimum) put_half(b.minimum, to + 2);
    put_fields(b.codes.data(), 16, 4, 32, 0, to + codes_at);
    if (HasFifthBit) put_bits(b.codes.data(), 32, 4, to + bits_at);
  }
};

/// Eight scales and eight minima of six bits in twelve bytes.
inline void take_six_bits(const std::uint8_t* s, coded_block& b) noexcept {
  for (std::size_t j = 0; j < 4; ++j) {
    b.scales[j] = s[j] & 63U, b.minima[j] = s[j + 4] & 63U;
    b.scales[j + 4] = to_code((s[j + 8] & 15) | (s[j] >> 6) << 4);
    b.minima[j + 4] = to_code((s[j + 8] >> 4) | (s[j + 4] >> 6) << 4);
  }
}
inline void put_six_bits(const coded_block& b, std::uint8_t* s) noexcept {
  for (std::size_t j = 0; j < 4; ++j) {
    s[j] = to_code(b.scales[j] | (b.scales[j + 4] >> 4) << 6);
    s[j + 4] = to_code(b.minima[j] | (b.minima[j + 4] >> 4) << 6);
    s[j + 8] = to_code((b.scales[j + 4] & 15) | (b.minima[j + 4] & 15) << 4);
  }
}

}  // namespace detail

template <ggml_type Type>
struct ggml_layout;

template <>
struct ggml_layout<ggml_type::q4_0> : detail::nibble_layout<q4_0_format, false, false> {};
template <>
struct ggml_layout<ggml_type::q4_1> : detail::nibble_layout<q4_1_format, true, false> {};
template <>
struct ggml_layout<ggml_type::q5_0> : detail::nibble_layout<q5_0_format, false, true> {};
template <>
struct ggml_layout<ggml_type::q5_1> : detail::nibble_layout<q5_1_format, true, true> {};
template <>
struct ggml_layout<ggml_type::iq4_nl> : detail::nibble_layout<iq4_nl_format, false, false> {};

template <>
struct ggml_layout<ggml_type::q8_0> {
  using format = q8_0_format;
  static void unpack(const std::uint8_t* from, coded_block& b) noexcept {
    b.scale = detail::half_at(from);
    for (std::size_t i = 0; i < 32; ++i) b.codes[i] = from[2 + i] ^ 0x80U;  // signed to 128 more
  }
  static void pack(const coded_block& b, std::uint8_t* to) noexcept {
    detail::put_half(b.scale, to);
    for (std::size_t i = 0; i < 32; ++i) to[2 + i] = b.codes[i] ^ 0x80U;
  }
};

template <>
struct ggml_layout<ggml_type::q2_k> {
  using format = q2_k_format;
  static void unpack(const std::uint8_t* from, coded_block& b) noexcept {
    for (std::size_t r = 0; r < 16; ++r) b.scales[r] = from[r] & 15U, b.minima[r] = from[r] >> 4U;
    detail::take_parts(from + 16, 128, 32, 2, 256, 0, b.codes.data());
    b.scale = detail::half_at(from + 80), b.minimum = detail::half_at(from + 82);
  }
  static void pack(const coded_block& b, std::uint8_t* to) noexcept {
    for (std::size_t r = 0; r < 16; ++r) to[r] = detail::to_code(b.scales[r] | b.minima[r] << 4);
    detail::put_parts(b.codes.data(), 128, 32, 2, 256, 0, to + 16);
    detail::put_half(b.scale, to + 80), detail::put_half(b.minimum, to + 82);
  }
};

template <>
struct ggml_layout<ggml_type::q3_k> {
  using format = q3_k_format;
  static void unpack(const std::uint8_t* from, coded_block& b) noexcept {
    detail::take_parts(from + 32, 128, 32, 2, 256, 0, b.codes.data());
    detail::take_fields(from, 32, 1, 256, 2, b.codes.data());
    detail::take_fields(from + 96, 8, 4, 16, 0, b.scales.data());
    detail::take_fields(from + 104, 4, 2, 16, 4, b.scales.data());
    b.scale = detail::half_at(from + 108);
  }
  static void pack(const coded_block& b, std::uint8_t* to) noexcept {
    detail::put_parts(b.codes.data(), 128, 32, 2, 256, 0, to + 32);
    detail::put_fields(b.codes.data(), 32, 1, 256, 2, to);
    detail::put_fields(b.scales.data(), 8, 4, 16, 0, to + 96);
    detail::put_fields(b.scales.data(), 4, 2, 16, 4, to + 104);
    detail::put_half(b.scale, to + 108);
  }
};

template <>
struct ggml_layout<ggml_type::q4_k> {
  using format = q4_k_format;
  static void unpack(const std::uint8_t* from, coded_block& b) noexcept {
    b.scale = detail::half_at(from), b.minimum = detail::half_at(from + 2);
    detail::take_six_bits(from + 4, b);
    detail::take_parts(from + 16, 64, 32, 4, 256, 0, b.codes.data());
  }
  static void pack(const coded_block& b, std::uint8_t* to) noexcept {
    detail::put_half(b.scale, to), detail::put_half(b.minimum, to + 2);
    detail::put_six_bits(b, to + 4);
    detail::put_parts(b.codes.data(), 64, 32, 4, 256, 0, to + 16);
  }
};

template <>
struct ggml_layout<ggml_type::q5_k> {
  using format = q5_k_format;
  static void unpack(const std::uint8_t* from, coded_block& b) noexcept {
    b.scale = detail::half_at(from), b.minimum = detail::half_at(from + 2);
    detail::take_six_bits(from + 4, b);
    detail::take_fields(from + 16, 32, 1, 256, 4, b.codes.data());
    detail::take_parts(from + 48, 64, 32, 4, 256, 0, b.codes.data());
  }
  static void pack(const coded_block& b, std::uint8_t* to) noexcept {
    detail::put_half(b.scale, to), detail::put_half(b.minimum, to + 2);
    detail::put_six_bits(b, to + 4);
    detail::put_fields(b.codes.data(), 32, 1, 256, 4, to + 16);
    detail::put_parts(b.codes.data(), 64, 32, 4, 256, 0, to + 48);
  }
};

template <>
struct ggml_layout<ggml_type::q6_k> {
  using format = q6_k_format;
  static void unpack(const std::uint8_t* from, coded_block& b) noexcept {
    detail::take_parts(from, 128, 64, 4, 256, 0, b.codes.data());
    detail::take_parts(from + 128, 128, 32, 2, 256, 4, b.codes.data());
    for (std::size_t r = 0; r < 16; ++r) b.scales[r] = from[192 + r] ^ 0x80U;
    b.scale = detail::half_at(from + 208);
  }
  static void pack(const coded_block& b, std::uint8_t* to) noexcept {
    detail::put_parts(b.codes.data(), 128, 64, 4, 256, 0, to);
    detail::put_parts(b.codes.data(), 128, 32, 2, 256, 4, to + 128);
    for (std::size_t r = 0; r < 16; ++r) to[192 + r] = b.scales[r] ^ 0x80U;
    detail::put_half(b.scale, to + 208);
  }
};

template <>
struct ggml_layout<ggml_type::iq4_xs> {
  using format = iq4_xs_format;
  static void unpack(const std::uint8_t* from, coded_block& b) noexcept {
    b.scale = detail::half_at(from);
    for (std::size_t r = 0; r < 8; ++r) {
      const int high = from[2 + r / 4] >> (2 * (r % 4)) & 3, low = from[4 + r / 2] >> (4 * (r % 2)) & 15;
      b.scales[r] = detail::to_code(low | high << 4);
    }
    detail::take_parts(from + 8, 32, 16, 4, 256, 0, b.codes.data());
  }
  static void pack(const coded_block& b, std::uint8_t* to) noexcept {
    detail::put_half(b.scale, to);
    for (std::size_t r = 0; r < 8; ++r) {
      to[2 + r / 4] = detail::to_code(to[2 + r / 4] | (b.scales[r] >> 4) << (2 * (r % 4)));
      to[4 + r / 2] = detail::to_code(to[4 + r / 2] | (b.scales[r] & 15) << (4 * (r % 2)));
    }
    detail::put_parts(b.codes.data(), 32, 16, 4, 256, 0, to + 8);
  }
};

template <>
struct ggml_layout<ggml_type::mxfp4> {
  using format = mxfp4_format;
  static void unpack(const std::uint8_t* from, coded_block& b) noexcept {
    b.scales[0] = from[0];
    detail::take_fields(from + 1, 16, 4, 32, 0, b.codes.data());
  }
  static void pack(const coded_block& b, std::uint8_t* to) noexcept {
    to[0] = b.scales[0];
    detail::put_fields(b.codes.data(), 16, 4, 32, 0, to + 1);
  }
};

template <>
struct ggml_layout<ggml_type::nvfp4> {
  using format = nvfp4_format;
  static void unpack(const std::uint8_t* from, coded_block& b) noexcept {
    for (std::size_t r = 0; r < 4; ++r) {
      const std::uint8_t code = from[r] & 0x7FU;
      b.scales[r] = code == 0x7FU ? std::uint8_t(0) : code;
    }
    detail::take_parts(from + 4, 16, 8, 4, 64, 0, b.codes.data());
  }
  static void pack(const coded_block& b, std::uint8_t* to) noexcept {
    for (std::size_t r = 0; r < 4; ++r) to[r] = b.scales[r];
    detail::put_parts(b.codes.data(), 16, 8, 4, 64, 0, to + 4);
  }
};

template <>
struct ggml_layout<ggml_type::tq2_0> {
  using format = ternary_format;
  static void unpack(const std::uint8_t* from, coded_block& b) noexcept {
    detail::take_parts(from, 128, 32, 2, 256, 0, b.codes.data());
    b.scale = detail::half_at(from + 64);
  }
  static void pack(const coded_block& b, std::uint8_t* to) noexcept {
    detail::put_parts(b.codes.data(), 128, 32, 2, 256, 0, to);
    detail::put_half(b.scale, to + 64);
  }
};

/// A byte is a fraction in base 3, rounded up: its first five digits are trits of five parts of the block.
template <>
struct ggml_layout<ggml_type::tq1_0> {
  using format = ternary_format;
  struct part {
    index_t first, width, digits;
  };
  static constexpr std::array<part, 3> parts{{{0, 32, 5}, {160, 16, 5}, {240, 4, 4}}};

  static void unpack(const std::uint8_t* from, coded_block& b) noexcept {
    index_t at = 0;
    for (const part& p : parts) {
      for (index_t j = 0; j < p.width; ++j) {
        unsigned rest = from[at + j];
        for (index_t n = 0; n < p.digits; ++n, rest = rest * 3 & 255U)
          b.codes[as_size(p.first + n * p.width + j)] = detail::to_code(int(rest * 3 >> 8U));
      }
      at += p.width;
    }
    b.scale = detail::half_at(from + 52);
  }
  static void pack(const coded_block& b, std::uint8_t* to) noexcept {
    index_t at = 0;
    for (const part& p : parts) {
      for (index_t j = 0; j < p.width; ++j) {
        unsigned whole = 0;
        for (index_t n = 0; n < 5; ++n)
          whole = whole * 3 + (n < p.digits ? b.codes[as_size(p.first + n * p.width + j)] : 0U);
        to[at + j] = detail::to_code(int((whole * 256 + 242) / 243));
      }
      at += p.width;
    }
    detail::put_half(b.scale, to + 52);
  }
};

}  // namespace sluice::inline SLUICE_ISA
