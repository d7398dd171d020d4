/// Numbers become a block of a grid format (kernel/format/grid_blocks.hpp): the nearest entries under scales that suit
/// the largest numbers.
///
///   d   such that the largest |w| of the block has the largest scale and number of the format
///   s   of those that suit the largest |w| of their weights, and the two below, that with the least squared error
///   g   the entry with the least squared error, the first one of equals; then, where eight signs have seven bits and their
///       number is odd, the sign of the weight is turned at which it costs least
///
/// It knows no calibration, which formats of so few bits live on: files made with it are better. A block with NaN or
/// infinity becomes NaN; d that half cannot hold becomes infinity or zero. Every entry is tried for every vector: a
/// thousand products a weight.
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/kernel/format/grid_blocks.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Format>
class grid_search {
public:
  /// block [Format::block_bytes] of numbers [256].
  static void encode(const float* numbers, std::byte* block) noexcept {
    std::fill_n(block, Format::block_bytes, std::byte{0});
    const float largest = largest_of(numbers, grid_inputs);
    if (!(bits_of(largest) < infinity_bits<float>)) {
      Format::set_half(block, {0x7E00});
      return;
    }
    constexpr float most = Format::factor * static_cast<float>(2 * most_scale + 1) * largest_number;
    const float16 half = round_to<float16>(largest / most);
    Format::set_half(block, half);
    const float d = to_float(half) * Format::factor;
    if (d == 0 || !(bits_of(d) < infinity_bits<float>)) return;
    // One scale for all of a run where both halves have it in the same bits.
    constexpr index_t shared = Format::scale(0, 0).shift == Format::scale(0, 1).shift ? grid_run : grid_run / 2;
    for (index_t i = 0; i < grid_inputs; i += shared)
      encode_shared(numbers + i, d, i / grid_run, i % grid_run, shared, block);
  }

private:
  static constexpr index_t length = Format::grid.length;
  static constexpr int most_scale = (1 << Format::scale(0, 0).bits) - 1;
  static constexpr float largest_number = [] {
    int most = 0;
    for (index_t e = 0; e < Format::grid.entries; ++e)
      for (index_t j = 0; j < length; ++j) most = (std::max)(most, Format::grid.number(e, j));
    return static_cast<float>(most) + (has_delta<Format> ? 0.125F : 0.0F);
  }();

  /// What is chosen for at most 32 weights.
  struct choice {
    int scale = 0;
    float error = (std::numeric_limits<float>::max)();
    std::array<index_t, 8> entry{};
    std::array<unsigned, 4> signs{};
    std::array<bool, 4> minus{};
  };

  static float largest_of(const float* numbers, index_t count) noexcept {
    std::int32_t most = 0;  // bits of absolute values are ordered as they are, NaN last
    for (index_t i = 0; i < count; ++i) most = (std::max)(most, bits_of(numbers[i]) & 0x7FFFFFFF);
    return std::bit_cast<float>(most);
  }

  static void encode_shared(const float* w, float d, index_t r, index_t begin, index_t count,
                            std::byte* block) noexcept {
    const float wanted = (largest_of(w, count) / (d * largest_number) - 1) / 2;
    const int top = (std::clamp)(static_cast<int>(std::ceil((std::min)(wanted, float(most_scale)))), 0, most_scale);
    choice best;
    for (int s = top; s >= (std::max)(top - 2, 0); --s) {
      const choice some = choose(w, d * static_cast<float>(2 * s + 1), count, s);
      if (some.error < best.error) best = some;
    }
    write(block, Format::scale(r, begin / 16), static_cast<unsigned>(best.scale));
    for (index_t k = 0; k < count / length; ++k) {
      const index_t place = begin / length + k;
      const auto entry = static_cast<unsigned>(best.entry[as_size(k)]);
      write(block, Format::low(r, place), entry);
      if constexpr (Format::high(0, 0).bits > 0)
        write(block, Format::high(r, place), entry >> Format::low(r, place).bits);
    }
    for (index_t q = 0; q < count / 8; ++q) {
      if constexpr (has_delta<Format>)
        write(block, Format::minus(r, begin / 8 + q), best.minus[as_size(q)] ? 1U : 0U);
      else
        write(block, Format::signs(r, begin / 8 + q), best.signs[as_size(q)]);
    }
  }

  static choice choose(const float* w, float scale, index_t count, int s) noexcept {
    choice chosen{.scale = s, .error = 0};
    if constexpr (has_delta<Format>) {
      // IQ1_S has one sign of delta a run, IQ1_M one for eight weights.
      constexpr index_t together = Format::minus(0, 0).shift == Format::minus(0, 1).shift ? grid_run : 8;
      for (index_t i = 0; i < count; i += together) {
        float error[2] = {0, 0};
        std::array<index_t, 4> entry[2];
        for (int minus = 0; minus < 2; ++minus)
          for (index_t k = i; k < i + together; k += 8)
            error[minus] += nearest(w + k, scale, minus == 1 ? -0.125F : 0.125F, entry[minus][as_size((k - i) / 8)]);
        const bool minus = error[1] < error[0];
        for (index_t k = i; k < i + together; k += 8) {
          chosen.entry[as_size(k / 8)] = entry[minus ? 1 : 0][as_size((k - i) / 8)];
          chosen.minus[as_size(k / 8)] = minus;
        }
        chosen.error += error[minus ? 1 : 0];
      }
    } else {
      for (index_t i = 0; i < count; i += 8) {
        std::array<float, 8> magnitude;
        unsigned signs = 0;
        for (index_t j = 0; j < 8; ++j) {
          magnitude[as_size(j)] = (std::abs)(w[i + j]);
          if (bits_of(w[i + j]) < 0) signs |= 1U << j;
        }
        for (index_t k = 0; k < 8; k += length)
          chosen.error += nearest(magnitude.data() + k, scale, 0, chosen.entry[as_size((i + k) / length)]);
        if constexpr (Format::signs(0, 0).bits == 7) {
          if (std::popcount(signs) % 2 != 0) {
            const auto cost = [&](index_t j) {
              const index_t entry = chosen.entry[as_size((i + j) / length)];
              return 4 * magnitude[as_size(j)] * scale * static_cast<float>(Format::grid.number(entry, j % length));
            };
            index_t least = 0;
            for (index_t j = 1; j < 8; ++j)
              if (cost(j) < cost(least)) least = j;
            chosen.error += cost(least);
            signs ^= 1U << least;
          }
        }
        chosen.signs[as_size(i / 8)] = signs & ((1U << Format::signs(0, 0).bits) - 1U);
      }
    }
    return chosen;
  }

  /// The squared error of the nearest entry.
  static float nearest(const float* w, float scale, float delta, index_t& entry) noexcept {
    float least = (std::numeric_limits<float>::max)();
    for (index_t e = 0; e < Format::grid.entries; ++e) {
      float error = 0;
      for (index_t j = 0; j < length; ++j) {
        const float off = w[j] - scale * (static_cast<float>(Format::grid.number(e, j)) + delta);
        error += off * off;
      }
      if (error < least) {
        least = error;
        entry = e;
      }
    }
    return least;
  }

  static void write(std::byte* block, const bit_field& f, unsigned value) noexcept {
    std::byte* const at = block + Format::words_at + 4 * f.word;
    std::uint32_t word;
    std::memcpy(&word, at, sizeof word);
    const unsigned mask = ((1U << f.bits) - 1U) << f.shift;
    word = (word & ~mask) | (value << f.shift & mask);
    std::memcpy(at, &word, sizeof word);
  }
};

}  // namespace detail

/// block [Format::block_bytes] of numbers [256].
template <typename Format>
void encode_grid_block(const float* numbers, std::byte* block) noexcept {
  detail::grid_search<Format>::encode(numbers, block);
}

}  // namespace sluice::inline SLUICE_ISA
