/// How codes of b bits lie in a panel: planes of 8, 4, 2 or 1 bits, each in words of 32 bits a lane.
///
///   b = 8 | 4 | 2 | 4 + 1 | 4 + 2 | 2 + 1      bit_planes<Count, 4, 1>: Count codes a lane, the first plane has the lowest bits
///   code 4 q + j of a word of a plane of p bits lies at its bits 8 j + p q:  four neighbours are a byte each after one shift
///   and one mask, which is what dot products of bytes take
///   planes stand one after another, a plane is its words, a word L lanes
#pragma once

#include <sluice/kernel/dot_product.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace sluice::inline SLUICE_ISA {

template <index_t Count, int... Planes>
struct bit_planes {
  static_assert(((Planes == 8 || Planes == 4 || Planes == 2 || Planes == 1) && ...) && Count % 4 == 0);
  static constexpr index_t count = Count;
  static constexpr int bits = (Planes + ...);
  static constexpr index_t lanes = kernel::simd_width<float>;
  static constexpr std::array<int, sizeof...(Planes)> planes{Planes...};
  static constexpr bool has_one_plane = sizeof...(Planes) == 1;

  /// Words a lane of a plane of so many bits.
  static constexpr index_t words_of(int plane) noexcept { return (Count * plane + 31) / 32; }
  static constexpr index_t words = (words_of(Planes) + ...);
  static constexpr index_t bytes = words * 4 * lanes;
  using registers = std::array<kernel::quads, as_size(words)>;

  /// Writes the codes of one lane; its bits have to be zero before.
  static void put(const std::uint8_t* codes, index_t lane, std::byte* to) noexcept {
    each_place([&](index_t i, index_t word, int shift, int plane, int below) {
      std::uint32_t w;
      std::byte* const at = to + (word * lanes + lane) * 4;
      std::memcpy(&w, at, sizeof w);
      w |= (std::uint32_t(codes[i]) >> below & ((1U << plane) - 1)) << shift;
      std::memcpy(at, &w, sizeof w);
    });
  }
  static void get(const std::byte* from, index_t lane, std::uint8_t* codes) noexcept {
    std::memset(codes, 0, as_size(Count));
    each_place([&](index_t i, index_t word, int shift, int plane, int below) {
      std::uint32_t w;
      std::memcpy(&w, from + (word * lanes + lane) * 4, sizeof w);
      codes[i] = static_cast<std::uint8_t>(codes[i] | (w >> shift & ((1U << plane) - 1)) << below);
    });
  }

  static registers load(const std::byte* from) noexcept {
    registers r;
    SLUICE_UNROLL for (index_t w = 0; w < words; ++w) r[as_size(w)] = kernel::load_quads(from + w * 4 * lanes);
    return r;
  }
  /// Codes 4 q .. 4 q + 3 of all lanes, a byte each.
  static kernel::quads quad(const registers& r, index_t q) noexcept {
    kernel::quads codes(0U);
    index_t word = 0;
    int below = 0;
    SLUICE_UNROLL for (std::size_t p = 0; p < planes.size(); ++p) {
      const int plane = planes[p];
      const index_t in_word = 8 / plane;
      const kernel::quads some = quad_of_word(r[as_size(word + q / in_word)], plane, q % in_word);
      codes = codes | (some << below);
      word += words_of(plane);
      below += plane;
    }
    return codes;
  }
  /// What a word of a plane has of codes 4 q .. 4 q + 3, counted from its own first.
  static kernel::quads quad_of_word(const kernel::quads& word, int plane, index_t q) noexcept {
    if (plane == 8) return word;
    return (word >> static_cast<int>(plane * q)) & kernel::quads(0x01010101U * ((1U << plane) - 1));
  }
  /// Code i of all lanes in their lowest bits, with others of the only plane above.
  static kernel::quads low_bits(const registers& r, index_t i) noexcept requires(has_one_plane) {
    constexpr int plane = planes[0];
    const index_t in_word = 8 / plane, q = i / 4;
    return r[as_size(q / in_word)] >> static_cast<int>(8 * (i % 4) + plane * (q % in_word));
  }
  /// Code i of all lanes, any i: for scales, of which there are few.
  static kernel::quads code(const std::byte* from, index_t i) noexcept {
    kernel::quads codes(0U);
    index_t word = 0;
    int below = 0;
    SLUICE_UNROLL for (std::size_t p = 0; p < planes.size(); ++p) {
      const int plane = planes[p];
      const std::size_t at = as_size(i), in_word = as_size(8 / plane);
      const int shift = static_cast<int>(8 * (at % 4) + as_size(plane) * (at / 4 % in_word));
      const kernel::quads w = kernel::load_quads(from + (as_size(word) + at / 4 / in_word) * as_size(4 * lanes));
      codes = codes | (((w >> shift) & kernel::quads((1U << plane) - 1)) << below);
      word += words_of(plane);
      below += plane;
    }
    return codes;
  }

private:
  /// f(code, word, shift, bits, bits of the planes before) for every code and plane.
  template <typename F>
  static void each_place(F&& f) noexcept {
    index_t first = 0;
    int below = 0;
    for (const int plane : planes) {
      const index_t in_word = 8 / plane;
      for (index_t i = 0; i < Count; ++i)
        f(i, first + i / 4 / in_word, static_cast<int>(8 * (i % 4) + plane * (i / 4 % in_word)), plane, below);
      first += words_of(plane);
      below += plane;
    }
  }
};

}  // namespace sluice::inline SLUICE_ISA
