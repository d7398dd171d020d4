/// Weights in ggml's IQ1, IQ2 and IQ3 formats (kernel/format/grid_blocks.hpp), with the numbers and the bits of the
/// files.
///
///   grid_storage<iq2_xxs> and so on; read only, activations and arithmetic in float
///
/// A block of a panel holds the blocks of its L rows: d of every lane, then the blocks' words, word i of all lanes
/// together. So it takes the bytes of the file (IQ1_M two more a block, for d is kept apart), and decoding is what a
/// single block's is, on vectors of words. Entries are gathered from the grid, 512 bytes to 16 KB of it.
///
/// pack_rows puts the file's rows into a panel as they are. encode searches (kernel/format/grid_search.hpp) and does
/// not find what a file said again: from one storage to another of the same format, copy panels, not numbers.
#pragma once

#include <sluice/kernel/format/decoded_runs.hpp>
#include <sluice/kernel/format/gather.hpp>
#include <sluice/kernel/format/grid_search.hpp>
#include <sluice/kernel/widen.hpp>

#include <string_view>

namespace sluice::inline SLUICE_ISA {

template <typename Format>
struct grid_storage : decoded_runs<grid_storage<Format>> {
  using base = decoded_runs<grid_storage<Format>>;
  using base::lanes, base::run;
  using words = kernel::simd<std::uint32_t>;
  static constexpr std::string_view name = find_ggml_type(static_cast<std::uint32_t>(Format::type))->name;
  static constexpr index_t block = detail::grid_inputs;
  static constexpr index_t block_bytes = lanes * (2 + 4 * detail::grid_words<Format>);
  static constexpr double bits_a_weight = 8.0 * double(block_bytes) / double(block * lanes);

  static void decode_run(const std::byte* from, index_t r, float* numbers) noexcept {
    using namespace detail;
    constexpr index_t length = Format::grid.length, entry_words = Format::grid.entry_words;
    const auto word = [&](index_t i) { return load_word(from + 2 * lanes + 4 * lanes * i); };
    const auto d = kernel::load_widened(reinterpret_cast<const float16*>(from)) * vector(Format::factor);
    SLUICE_UNROLL for (index_t h = 0; h < run; h += run / 2) {
      const words s = read_field(word, Format::scale(r, h / (run / 2)));
      const vector scale = d * to_number((s << 1) | words(1U));
      SLUICE_UNROLL for (index_t i = h; i < h + run / 2; i += 8) {
        [[maybe_unused]] words signs{};
        [[maybe_unused]] vector delta{};
        if constexpr (has_delta<Format>)
          delta = kernel::cast_bits<float>((read_field(word, Format::minus(r, i / 8)) << 31) | words(bits_of_eighth));
        else
          signs = read_signs<Format>(word, r, i / 8);
        SLUICE_UNROLL for (index_t b = 0; b < 8; b += 4) {
          const words entry = read_index<Format>(word, r, (i + b) / length);
          const words place = entry_words == 1 ? entry : (entry << 1) | words(std::uint32_t(b / 4));
          const words four = kernel::gather(Format::grid.words.data(), place);
          SLUICE_UNROLL for (int j = 0; j < 4; ++j) {
            vector g = xsimd::to_float(kernel::cast_bits<std::int32_t>(four << (24 - 8 * j)) >> 24);
            if constexpr (has_delta<Format>)
              g = g + delta;
            else
              g = kernel::cast_bits<float>(kernel::cast_bits<std::uint32_t>(g) ^
                                           ((signs << (31 - static_cast<int>(b) - j)) & words(0x80000000U)));
            kernel::store<float>(numbers + (i + b + j) * lanes, scale * g);
          }
        }
      }
    }
  }

  /// The blocks first .. last of a panel, as files have them: row_of(l) points to the first block of the row of lane l,
  /// null for a lane without a row, which becomes zero.
  template <typename RowOf>
  static void pack_rows(const RowOf& row_of, index_t first, index_t last, std::byte* panel) {
    for (index_t k = first; k < last; ++k)
      for (index_t l = 0; l < lanes; ++l) {
        const std::byte* const row = row_of(l);
        put_block(row == nullptr ? nullptr : row + k * Format::block_bytes, l, panel + k * block_bytes);
      }
  }

  static void encode(const float* numbers, index_t first, index_t last, std::byte* panel) noexcept {
    std::array<float, as_size(block)> row;
    std::array<std::byte, as_size(Format::block_bytes)> bytes;
    for (index_t k = first / block; k < last / block; ++k, numbers += block * lanes)
      for (index_t l = 0; l < lanes; ++l) {
        for (index_t i = 0; i < block; ++i) row[as_size(i)] = numbers[i * lanes + l];
        encode_grid_block<Format>(row.data(), bytes.data());
        put_block(bytes.data(), l, panel + k * block_bytes);
      }
  }

private:
  using vector = kernel::simd<float>;
  static constexpr std::uint32_t bits_of_eighth = 0x3E000000U;

  static words load_word(const std::byte* from) noexcept {
    return kernel::load(reinterpret_cast<const std::uint32_t*>(from));
  }
  static vector to_number(const words& w) noexcept { return xsimd::to_float(kernel::cast_bits<std::int32_t>(w)); }

  static void put_block(const std::byte* from, index_t lane, std::byte* to) noexcept {
    const float16 d = from == nullptr ? float16{} : Format::half(from);
    std::memcpy(to + 2 * lane, &d, sizeof d);
    for (index_t i = 0; i < detail::grid_words<Format>; ++i) {
      std::byte* const at = to + 2 * lanes + 4 * (i * lanes + lane);
      if (from == nullptr)
        std::memset(at, 0, 4);
      else
        std::memcpy(at, from + Format::words_at + 4 * i, 4);
    }
  }
};

static_assert(WeightStorage<grid_storage<iq2_xxs>> && WeightStorage<grid_storage<iq3_s>> &&
              WeightStorage<grid_storage<iq1_m>>);

}  // namespace sluice::inline SLUICE_ISA
