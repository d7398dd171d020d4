/// Blocks of 256 weights as ggml's IQ1, IQ2 and IQ3 formats keep them: where their bits are, and how they decode.
///
///   w = d f (2 s + 1) sign (g + delta)
///
///   d      half of the block         s      code of 3 or 4 bits for 16 or 32 weights       f   constant of the format
///   g      number of a grid's entry (kernel/format/grids.hpp), chosen by an index for 8 or 4 weights
///   sign   a bit a weight; where eight have seven bits, the eighth makes the number of ones even
///   delta  1/8 or -1/8 in IQ1, else 0
///
/// Every product is exact in float, so their order does not matter. A format says where the fields of a run of 32
/// weights lie in the 32-bit words of a block, which come after d: what reads and what writes them is one piece of
/// code, and so is what reads a vector of words with a block in every lane (kernel/format/grid_storage.hpp). Any bytes
/// are a block; d may be infinite or NaN, and so are its weights then.
///
///   bytes of a block   IQ1_S 50   IQ1_M 56   IQ2_XXS 66   IQ2_XS 74   IQ2_S 82   IQ3_XXS 98   IQ3_S 110
#pragma once

#include <sluice/core/half.hpp>
#include <sluice/kernel/format/ggml_types.hpp>
#include <sluice/kernel/format/grids.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// Some bits of a word. No bits: a field that a format does not have.
struct bit_field {
  index_t word = 0;
  index_t shift = 0;
  int bits = 0;
};

inline constexpr index_t grid_inputs = 256;  ///< of a block
inline constexpr index_t grid_run = 32;      ///< inputs of a run

/// What formats share. Of run r, `low` and `high` are the index of entry k, `signs` those of eight weights (bit j:
/// weight j is negative), `scale` s of half h, `minus` whether delta is negative for eight weights.
template <ggml_type Type, const auto& Grid>
struct grid_format {
  static constexpr ggml_type type = Type;
  static constexpr const auto& grid = Grid;
  static constexpr index_t block_bytes = find_ggml_type(static_cast<std::uint32_t>(Type))->bytes;
  static constexpr index_t words_at = 2;  ///< after d
  static constexpr bit_field high(index_t, index_t) { return {}; }
  static constexpr bit_field signs(index_t, index_t) { return {}; }
  static constexpr bit_field minus(index_t, index_t) { return {}; }

  static float16 half(const std::byte* block) noexcept {
    float16 d;
    std::memcpy(&d, block, sizeof d);
    return d;
  }
  static void set_half(std::byte* block, float16 d) noexcept { std::memcpy(block, &d, sizeof d); }
};

}  // namespace detail

struct iq2_xxs : detail::grid_format<ggml_type::iq2_xxs, iq2_xxs_grid> {
  static constexpr float factor = 0.125F;
  static constexpr detail::bit_field low(index_t r, index_t k) { return {2 * r, 8 * k, 8}; }
  static constexpr detail::bit_field signs(index_t r, index_t q) { return {2 * r + 1, 7 * q, 7}; }
  static constexpr detail::bit_field scale(index_t r, index_t) { return {2 * r + 1, 28, 4}; }
};

struct iq2_xs : detail::grid_format<ggml_type::iq2_xs, iq2_xs_grid> {
  static constexpr float factor = 0.125F;
  static constexpr detail::bit_field low(index_t r, index_t k) { return {2 * r + k / 2, k % 2 * 16, 9}; }
  static constexpr detail::bit_field signs(index_t r, index_t q) { return {2 * r + q / 2, q % 2 * 16 + 9, 7}; }
  static constexpr detail::bit_field scale(index_t r, index_t h) { return {16 + r / 4, r % 4 * 8 + 4 * h, 4}; }
};

struct iq2_s : detail::grid_format<ggml_type::iq2_s, iq2_s_grid> {
  static constexpr float factor = 0.125F;
  static constexpr detail::bit_field low(index_t r, index_t k) { return {r, 8 * k, 8}; }
  static constexpr detail::bit_field high(index_t r, index_t k) { return {16 + r / 4, r % 4 * 8 + 2 * k, 2}; }
  static constexpr detail::bit_field signs(index_t r, index_t q) { return {8 + r, 8 * q, 8}; }
  static constexpr detail::bit_field scale(index_t r, index_t h) { return {18 + r / 4, r % 4 * 8 + 4 * h, 4}; }
};

struct iq3_xxs : detail::grid_format<ggml_type::iq3_xxs, iq3_xxs_grid> {
  static constexpr float factor = 0.25F;
  static constexpr detail::bit_field low(index_t r, index_t k) { return {2 * r + k / 4, k % 4 * 8, 8}; }
  static constexpr detail::bit_field signs(index_t r, index_t q) { return {16 + r, 7 * q, 7}; }
  static constexpr detail::bit_field scale(index_t r, index_t) { return {16 + r, 28, 4}; }
};

struct iq3_s : detail::grid_format<ggml_type::iq3_s, iq3_s_grid> {
  static constexpr float factor = 1;
  static constexpr detail::bit_field low(index_t r, index_t k) { return {2 * r + k / 4, k % 4 * 8, 8}; }
  static constexpr detail::bit_field high(index_t r, index_t k) { return {16 + r / 4, r % 4 * 8 + k, 1}; }
  static constexpr detail::bit_field signs(index_t r, index_t q) { return {18 + r, 8 * q, 8}; }
  static constexpr detail::bit_field scale(index_t r, index_t) { return {26, 4 * r, 4}; }
};

struct iq1_s : detail::grid_format<ggml_type::iq1_s, iq1_grid> {
  static constexpr float factor = 1;
  static constexpr detail::bit_field low(index_t r, index_t k) { return {r, 8 * k, 8}; }
  static constexpr detail::bit_field high(index_t r, index_t k) { return {8 + r / 2, r % 2 * 16 + 3 * k, 3}; }
  static constexpr detail::bit_field scale(index_t r, index_t) { return {8 + r / 2, r % 2 * 16 + 12, 3}; }
  static constexpr detail::bit_field minus(index_t r, index_t) { return {8 + r / 2, r % 2 * 16 + 15, 1}; }
};

/// d has no bytes of its own: four bits of it lie above every four of the sixteen scales.
struct iq1_m : detail::grid_format<ggml_type::iq1_m, iq1_grid> {
  static constexpr float factor = 1;
  static constexpr index_t words_at = 0;
  static constexpr detail::bit_field low(index_t r, index_t k) { return {r, 8 * k, 8}; }
  static constexpr detail::bit_field high(index_t r, index_t k) { return {8 + r / 2, r % 2 * 16 + 4 * k, 3}; }
  static constexpr detail::bit_field scale(index_t r, index_t h) {
    return {12 + r / 4, r / 2 % 2 * 16 + r % 2 * 6 + 3 * h, 3};
  }
  static constexpr detail::bit_field minus(index_t r, index_t q) { return {8 + r / 2, r % 2 * 16 + 4 * q + 3, 1}; }

  static float16 half(const std::byte* block) noexcept {
    unsigned d = 0;
    for (int i = 0; i < 4; ++i) d |= std::to_integer<unsigned>(block[49 + 2 * i]) >> 4 << (4 * i);
    return {static_cast<std::uint16_t>(d)};
  }
  static void set_half(std::byte* block, float16 d) noexcept {
    for (int i = 0; i < 4; ++i)
      block[49 + 2 * i] = (block[49 + 2 * i] & std::byte{15}) | static_cast<std::byte>((d.bits >> (4 * i) & 15) << 4);
  }
};

namespace detail {

template <typename Format>
inline constexpr index_t grid_words = (Format::block_bytes - Format::words_at) / 4;
/// Weights that share a delta's sign have it for all of them in the same bit.
template <typename Format>
inline constexpr bool has_delta = Format::minus(0, 0).bits > 0;

/// A field of the words that word(i) returns.
template <typename Words>
auto read_field(const Words& word, const bit_field& f) noexcept {
  const auto w = word(f.word);
  return (w >> static_cast<int>(f.shift)) & decltype(w + w)((1U << f.bits) - 1U);
}

/// The index of entry k of run r.
template <typename Format, typename Words>
auto read_index(const Words& word, index_t r, index_t k) noexcept {
  auto index = read_field(word, Format::low(r, k));
  if constexpr (Format::high(0, 0).bits > 0)
    index = index | (read_field(word, Format::high(r, k)) << Format::low(r, k).bits);
  return index;
}

/// Signs of eight weights, the eighth made up where it has no bit.
template <typename Format, typename Words>
auto read_signs(const Words& word, index_t r, index_t q) noexcept {
  auto signs = read_field(word, Format::signs(r, q));
  if constexpr (Format::signs(0, 0).bits == 7) {
    auto parity = signs ^ (signs >> 4);
    parity = parity ^ (parity >> 2);
    parity = parity ^ (parity >> 1);
    signs = signs | ((parity & decltype(parity)(1U)) << 7);
  }
  return signs;
}

}  // namespace detail

/// The 256 weights of a block of Format::block_bytes bytes.
template <typename Format>
void decode_grid_block(const std::byte* block, float* weights) noexcept {
  using namespace detail;
  constexpr index_t length = Format::grid.length;
  const float d = to_float(Format::half(block)) * Format::factor;
  const auto word = [&](index_t i) {
    std::uint32_t bits;
    std::memcpy(&bits, block + Format::words_at + 4 * i, sizeof bits);
    return bits;
  };
  for (index_t r = 0; r < grid_inputs / grid_run; ++r)
    for (index_t i = 0; i < grid_run; ++i, ++weights) {
      const auto entry = static_cast<index_t>(read_index<Format>(word, r, i / length));
      auto g = static_cast<float>(Format::grid.number(entry, i % length));
      if constexpr (has_delta<Format>) {
        g += read_field(word, Format::minus(r, i / 8)) != 0 ? -0.125F : 0.125F;
      } else {
        if ((read_signs<Format>(word, r, i / 8) >> (i % 8) & 1U) != 0) g = -g;
      }
      *weights = d * static_cast<float>(2 * read_field(word, Format::scale(r, i / 16)) + 1) * g;
    }
}

}  // namespace sluice::inline SLUICE_ISA
