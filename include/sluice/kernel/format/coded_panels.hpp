/// Tiles that read whole codes of a panel as they lie: they become bytes in registers, and nothing is expanded.
///
///   a step of the tile  four inputs;  a word of b bits a code is 8 / b steps, and so is what the cursor says at a time
///   a run               what shares a scale and a row's factor (kernel/byte_panels.hpp), 16 or 32 inputs
///
/// Sums are those of byte_panels, bit for bit, and rows are packed as for them. A tall tile would do the same work for
/// every block of rows again: with fewer than eight bits a code these tiles are for few rows.
#pragma once

#include <sluice/kernel/byte_panels.hpp>
#include <sluice/kernel/format/block_scales.hpp>

#include <array>
#include <cstddef>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Format>
inline constexpr bool has_minima = Format::scales::has_minimum || Format::scales::has_zero;

/// What sums of bytes are multiplied with, and rows' sums, of all lanes; the minimum of formats that have any.
struct byte_terms {
  kernel::simd<float> scale, minimum;
};

template <typename Format>
byte_terms terms_of_bytes(const scale_terms& terms) noexcept {
  using vector = kernel::simd<float>;
  constexpr float unit = Format::levels::unit;
  byte_terms of;
  of.scale = unit == 1.0F ? terms.scale : terms.scale * vector(unit);
  if constexpr (Format::scales::has_zero)
    of.minimum = vector(0.0F) - terms.scale * terms.zero;
  else if constexpr (Format::scales::has_minimum)
    of.minimum = terms.minimum;
  return of;
}

}  // namespace detail

/// How rows are packed and multiplied is that of byte_panels.
template <typename Format>
struct coded_panels : byte_panels<Format::scales::run, false> {
  using codes = typename Format::codes;
  using scales = typename Format::scales;
  using packing = byte_panels<scales::run, false>;
  using typename packing::factor, typename packing::partial, typename packing::vector;
  using packing::block, packing::group, packing::lanes;
  static constexpr index_t units = 8 / codes::bits, word_bytes = 4 * lanes;
  static constexpr index_t runs = Format::inputs / scales::run, run_bytes = block / units * word_bytes;
  static_assert(Format::levels::is_whole, "sluice: codes that are not whole numbers have no dot products of bytes");
  static_assert(codes::has_one_plane && block % units == 0 && lanes % units == 0);

  struct cursor {
    const std::byte* address = nullptr;
    index_t run = 0;  ///< of the block

    void enter() noexcept {
      if (run == 0) address += scales::bytes;
    }
    std::array<kernel::quads, as_size(units)> next() noexcept {
      const kernel::quads word = kernel::load_quads(address);
      address += word_bytes;
      std::array<kernel::quads, as_size(units)> bytes;
      SLUICE_UNROLL for (index_t u = 0; u < units; ++u)
        bytes[as_size(u)] = Format::levels::bytes(codes::quad_of_word(word, codes::bits, u));
      return bytes;
    }
    detail::byte_terms leave() noexcept {
      const std::byte* const begin = address - (run + 1) * run_bytes - scales::bytes;
      const detail::byte_terms terms = detail::terms_of_bytes<Format>(scales::terms(begin, run));
      if constexpr (runs > 1) run = run + 1 == runs ? 0 : run + 1;
      return terms;
    }
    static vector finish(const partial& sum, const factor& f, const detail::byte_terms& terms,
                         const vector& total) noexcept {
      const vector scaled = kernel::multiply_add<float>(xsimd::to_float(sum) * vector(f.scale), terms.scale, total);
      if constexpr (detail::has_minima<Format>)
        return kernel::multiply_add<float>(terms.minimum, vector(f.sum), scaled);
      else
        return scaled;
    }
  };

  /// Whole blocks.
  static constexpr index_t bytes(index_t steps) noexcept {
    return steps * group / Format::inputs * Format::block_bytes;
  }
  static cursor at(const std::byte* address) noexcept { return {address}; }
};

}  // namespace sluice::inline SLUICE_ISA
