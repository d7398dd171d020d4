/// A weight storage made of parts: how codes lie in bits, what they mean, what scales them, and how numbers are
/// rounded.
///
///   block_format<Codes, Levels, Scales, Rounding>     one line of a table of formats: kernel/format/formats.hpp
///   coded_storage<Format>                             exact weights: decoded in registers, activations and sums in float
///   coded_storage<Format, arithmetic::bytes>          activations in 8 bits (kernel/byte_panels.hpp), sums of whole numbers
///
/// Both lie in memory alike, byte for byte. A block of a panel is the scales of its lanes and then its codes in runs.
/// Decoded weights are exactly the numbers that the format defines, s m + b rounded once; where the machine has no
/// fused multiply-add, that holds while products are exact, as those of all formats with minima are.
///
/// Rounding::choose(x, block) says which codes and scales stand for a block of numbers, whatever they are; zero stands
/// for itself. Blocks that are there already, of a file say, are taken as they are: encoded_matrix::fill_coded.
#pragma once

#include <sluice/kernel/byte_panels.hpp>
#include <sluice/kernel/format/block_scales.hpp>
#include <sluice/kernel/format/coded_panels.hpp>
#include <sluice/kernel/format/decoded_runs.hpp>

#include <array>
#include <cstddef>
#include <cstring>

namespace sluice::inline SLUICE_ISA {

template <typename Codes, typename Levels, typename Scales, typename Rounding>
struct block_format {
  using codes = Codes;
  using levels = Levels;
  using scales = Scales;
  using rounding = Rounding;
  static constexpr index_t inputs = scales::inputs;  ///< of a block
  static constexpr index_t lanes = kernel::simd_width<float>;
  static constexpr index_t block_bytes = scales::bytes + inputs / codes::count * codes::bytes;
  static constexpr double bits_a_weight = 8.0 * double(block_bytes) / double(inputs * lanes);
  static_assert(inputs % codes::count == 0 && codes::count % scales::run == 0 && inputs <= 256);

  /// The number that input i of a block stands for.
  static constexpr float value(const coded_block& b, index_t i) noexcept {
    const index_t r = i / scales::run;
    float level = levels::value(b.codes[as_size(i)]);
    if constexpr (scales::has_zero) level -= scales::zero(b);
    const float product = scales::scale(b, r) * level;
    if constexpr (scales::has_minimum)
      return product + scales::minimum(b, r);  // products are exact
    else
      return product;
  }

  /// A whole block of a panel: block_of(lane) is that lane's.
  template <typename BlockOf>
  static void put(const BlockOf& block_of, std::byte* to) {
    std::memset(to, 0, as_size(block_bytes));
    for (index_t lane = 0; lane < lanes; ++lane) {
      const coded_block& b = block_of(lane);
      scales::put(b, lane, to);
      for (index_t i = 0; i < inputs; i += codes::count)
        codes::put(b.codes.data() + i, lane, to + scales::bytes + i / codes::count * codes::bytes);
    }
  }
  static coded_block get(const std::byte* from, index_t lane) {
    coded_block b;
    scales::get(from, lane, b);
    for (index_t i = 0; i < inputs; i += codes::count)
      codes::get(from + scales::bytes + i / codes::count * codes::bytes, lane, b.codes.data() + i);
    return b;
  }

  /// f(words, i, terms) for the inputs i of a run of codes, four at a time. By value: what f knows is in registers.
  template <typename F>
  static void for_each_quad(const std::byte* block, index_t run, const F f) noexcept {
    const typename codes::registers words = codes::load(block + scales::bytes + run * codes::bytes);
    constexpr index_t parts = codes::count / scales::run;
    SLUICE_UNROLL for (index_t part = 0; part < parts; ++part) {
      const scale_terms terms = scales::terms(block, run * parts + part);
      SLUICE_UNROLL for (index_t i = part * scales::run; i < (part + 1) * scales::run; i += 4) f(words, i, terms);
    }
  }
};

/// What products of rows with coded weights are made of.
enum class arithmetic { floats, bytes };

namespace detail {

/// Which tiles read codes from panels: those of few rows, or all.
enum class panel_readers { none, low, all };
template <typename Format>
inline constexpr panel_readers readers_of = !Format::codes::has_one_plane                   ? panel_readers::none
                                            : Format::codes::bits < 8 || has_minima<Format> ? panel_readers::low
                                                                                            : panel_readers::all;

template <typename Format, arithmetic By>
struct coded_tiles {};
template <typename Format>
struct expanded_tiles {
  static_assert(Format::levels::is_whole, "sluice: codes that are not whole numbers have no dot products of bytes");
  using tiles = byte_panels<Format::scales::run, has_minima<Format>>;

  static void expand(const std::byte* panel, index_t first, index_t last, std::byte* to) noexcept {
    constexpr index_t count = Format::codes::count;
    for (index_t i = first; i < last; i += count, to += tiles::bytes(count / tiles::group))
      expand_codes(panel + i / Format::inputs * Format::block_bytes, i % Format::inputs / count, to);
  }

private:
  static void expand_codes(const std::byte* block, index_t number, std::byte* to) noexcept {
    using codes = typename Format::codes;
    constexpr index_t run = Format::scales::run;
    Format::for_each_quad(
        block, number, [to](const typename codes::registers& words, index_t i, const scale_terms& terms) {
          std::byte* const part = to + i / run * tiles::block_bytes;
          if (i % run == 0) {
            const auto [scale, minimum] = terms_of_bytes<Format>(terms);
            auto* const scales = reinterpret_cast<float*>(part);
            kernel::store<float>(scales, scale);
            if constexpr (has_minima<Format>) kernel::store<float>(scales + Format::lanes, minimum);
          }
          const kernel::quads bytes = Format::levels::bytes(codes::quad(words, i / 4));
          std::memcpy(part + tiles::codes_at + i % run / 4 * tiles::vector_bytes, &bytes.data,
                      as_size(tiles::vector_bytes));
        });
  }
};
template <typename Format>
struct coded_tiles<Format, arithmetic::bytes> : expanded_tiles<Format> {};
template <typename Format>
  requires(readers_of<Format> == panel_readers::low)
struct coded_tiles<Format, arithmetic::bytes> : expanded_tiles<Format> {
  using low_tiles = coded_panels<Format>;
};
template <typename Format>
  requires(readers_of<Format> == panel_readers::all)
struct coded_tiles<Format, arithmetic::bytes> {
  using tiles = coded_panels<Format>;
};

}  // namespace detail

template <typename Format, arithmetic By = arithmetic::floats>
struct coded_storage : decoded_runs<coded_storage<Format, By>, Format::codes::count>, detail::coded_tiles<Format, By> {
  using format = Format;
  static constexpr index_t lanes = Format::lanes;
  static constexpr index_t block = Format::inputs, block_bytes = Format::block_bytes;
  static constexpr double bits_a_weight = Format::bits_a_weight;

  static void encode(const float* numbers, index_t first, index_t last, std::byte* panel) noexcept {
    coded_block b;
    std::array<float, as_size(block)> x;
    for (index_t i = first; i < last; i += block, numbers += block * lanes)
      Format::put(
          [&](index_t lane) -> const coded_block& {
            for (index_t k = 0; k < block; ++k) x[as_size(k)] = numbers[k * lanes + lane];
            b = {};
            Format::rounding::choose(x.data(), b);
            return b;
          },
          panel + i / block * block_bytes);
  }
  static void decode_run(const std::byte* from, index_t number, float* to) noexcept {
    using vector = kernel::simd<float>;
    using codes = typename Format::codes;
    using levels = typename Format::levels;
    Format::for_each_quad(from, number,
                          [to](const typename codes::registers& words, index_t i, const scale_terms& terms) {
                            SLUICE_UNROLL for (int j = 0; j < 4; ++j) {
                              vector w;
                              if constexpr (kernel::has_number_tables && levels::bits <= 4 && codes::has_one_plane)
                                w = levels::number_of_low_bits(codes::low_bits(words, i + j));
                              else
                                w = levels::number(codes::quad(words, i / 4), j);
                              if constexpr (Format::scales::has_zero) w = w - terms.zero;
                              if constexpr (Format::scales::has_minimum)
                                w = kernel::multiply_add<float>(terms.scale, w, terms.minimum);
                              else
                                w = terms.scale * w;
                              kernel::store<float>(to + (i + j) * lanes, w);
                            }
                          });
  }
};

}  // namespace sluice::inline SLUICE_ISA
