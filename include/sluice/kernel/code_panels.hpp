/// Keys of codes for the search: packed into panels, and the tile that meets a panel's scores with the best so far.
///
///   panel p holds codes p L .. p L + L - 1, a code a lane: [D][L]; their offsets [L], NaN past the last code
///   state of a row [2][L]: the best score of every lane, and the bits of the number of the code in lane 0 of its panel
///
/// A score starts from its offset and is one chain along D, as every sum of kernel/tile.hpp is. Lanes are compared on
/// their own, panel after panel, so that a lane keeps the lowest of equal codes; the lanes of a row meet at the end.
#pragma once

#include <sluice/kernel/gemm.hpp>
#include <sluice/kernel/order.hpp>
#include <sluice/kernel/row_blocks.hpp>

namespace sluice::inline SLUICE_ISA::kernel {

template <typename Scalar>
struct code_keys {
  const Scalar* keys = nullptr;  ///< [C,D], rows `stride` apart
  index_t stride = 0;
  const Scalar* offsets = nullptr;  ///< [C], or null: zeros
  index_t count = 0;
  index_t width = 0;
};

/// Some panels, side by side.
template <typename Scalar>
struct code_panels {
  Scalar* keys = nullptr;
  Scalar* offsets = nullptr;
  index_t first = 0;  ///< code in lane 0 of the first
  index_t count = 0;
};

template <typename Scalar>
void pack_codes(const code_keys<Scalar>& k, const code_panels<Scalar>& to) noexcept {
  constexpr index_t lanes = simd_width<Scalar>;
  for (index_t p = 0; p < to.count; ++p) {
    const Scalar* from[as_size(lanes)];
    for (index_t l = 0; l < lanes; ++l) {
      const index_t c = to.first + p * lanes + l;
      from[l] = k.keys + (std::min)(c, k.count - 1) * k.stride;
      to.offsets[p * lanes + l] = c >= k.count ? quiet_nan<Scalar>() : k.offsets == nullptr ? Scalar(0) : k.offsets[c];
    }
    Scalar* out = to.keys + p * k.width * lanes;
    for (index_t d = 0; d < k.width; d += lanes) {
      const index_t some = (std::min)(lanes, k.width - d);
      simd<Scalar> rows[as_size(lanes)];
      if (some == lanes) {
        SLUICE_UNROLL for (index_t l = 0; l < lanes; ++l) rows[l] = load(from[l] + d);
      } else {
        SLUICE_UNROLL for (index_t l = 0; l < lanes; ++l) rows[l] = load_part(from[l] + d, some, Scalar(0));
      }
      SLUICE_UNROLL for (index_t l = 0; l < lanes; ++l) prefetch(from[l] + lanes * k.stride + d);
      transpose<Scalar>(rows);
      SLUICE_UNROLL for (index_t l = 0; l < lanes; ++l) if (l < some) store<Scalar>(out + (d + l) * lanes, rows[l]);
    }
  }
}

namespace detail {

/// No code: what the numbers of a state are before a lane has one.
template <typename Scalar>
inline constexpr ordered_bits<Scalar> no_number = -1;

/// A score is taken if it is greater than what a lane has; at first that is -infinity.
struct greatest_score {
  template <typename Scalar>
  static auto lanes(const simd<Scalar>& score, const simd<Scalar>& best, const simd<Scalar>&) noexcept {
    return greater_lanes<Scalar>(score, best);
  }
};

/// The first score that is a number is taken: where none is greater than -infinity.
struct first_score {
  template <typename Scalar>
  static auto lanes(const simd<Scalar>& score, const simd<Scalar>&, const simd<Scalar>& number) noexcept {
    using bits = ordered_bits<Scalar>;
    const auto below_nan = simd_keys<Scalar>(infinity_key<Scalar>) - magnitudes<Scalar>(cast_bits<bits>(score));
    return (cast_bits<bits>(number) & ~below_nan) < simd_keys<Scalar>(bits(0));  // no number yet, and not below zero
  }
};

template <typename Scalar, int Vectors>
struct score_operands : tile_operands<full_precision<Scalar>, Vectors> {
  const Scalar* offsets = nullptr;  ///< of the first panel
  Scalar* states = nullptr;         ///< of the first row
  index_t number = 0;               ///< of the code in lane 0 of the first panel
};

/// The scores of a tile: they start from offsets and end in the rows' states.
template <typename Scalar, int Rows, int Vectors, typename Rule>
struct score_sums {
  using vector = simd<Scalar>;
  using operands = score_operands<Scalar, Vectors>;
  static constexpr std::size_t rows = as_size(Rows), vectors = as_size(Vectors);
  static constexpr index_t lanes = simd_width<Scalar>;

  vector of[rows][vectors];

  void begin(const operands& t) noexcept {
    SLUICE_UNROLL for (std::size_t v = 0; v < vectors; ++v) {
      const vector offset = load(t.offsets + index_t(v) * lanes);
      SLUICE_UNROLL for (std::size_t i = 0; i < rows; ++i) of[i][v] = offset;
    }
  }
  template <typename Cursor>
  index_t resume(const operands&, Cursor*, index_t steps) noexcept {
    return steps;
  }
  template <typename Cursor>
  void pause(const operands&, const Cursor*) noexcept {}
  void end(const operands& t) noexcept {
    using bits = ordered_bits<Scalar>;
    vector numbers[vectors];
    SLUICE_UNROLL for (std::size_t v = 0; v < vectors; ++v) numbers[v] =
        cast_bits<Scalar>(simd<bits>(static_cast<bits>(t.number + index_t(v) * lanes)));
    SLUICE_UNROLL for (std::size_t i = 0; i < rows; ++i) {
      Scalar* const state = t.states + index_t(i) * 2 * lanes;
      vector best = load(state), number = load(state + lanes);
      SLUICE_UNROLL for (std::size_t v = 0; v < vectors; ++v) {
        const auto taken = Rule::template lanes<Scalar>(of[i][v], best, number);
        best = pick_lanes<Scalar>(taken, of[i][v], best);
        number = pick_lanes<Scalar>(taken, numbers[v], number);
      }
      store<Scalar>(state, best);
      store<Scalar>(state + lanes, number);
    }
  }
};

/// Rows rows, packed in forward order, against all of these panels; the next panels are prefetched meanwhile.
template <typename Scalar, typename Rule, int Rows, int Vectors>
void meet_panels(const Scalar* x, index_t width, const code_panels<Scalar>& panels, Scalar* states) noexcept {
  using storage = full_precision<Scalar>;
  constexpr index_t lanes = simd_width<Scalar>;
  score_operands<Scalar, Vectors> t;
  t.a = x;
  t.jump = Rows * lanes;
  t.inner = lanes;
  t.steps = width;
  t.states = states;
  prefetch_ahead ahead{{}, lanes * index_t(sizeof(Scalar))};
  for (index_t p = 0; p < panels.count; p += Vectors) {
    const Scalar* keys = panels.keys + p * width * lanes;
    for (index_t v = 0; v < Vectors; ++v) t.weights[as_size(v)].address = keys + v * width * lanes;
    for (index_t v = 0; v < tile_vectors; ++v)
      ahead.from[as_size(v)] = reinterpret_cast<const std::byte*>(keys + (Vectors + v) * width * lanes);
    t.offsets = panels.offsets + p * lanes;
    t.number = panels.first + p * lanes;
    tile<storage, forward_order<Scalar>, Rows, Vectors, score_sums<Scalar, Rows, Vectors, Rule>>(t, ahead);
  }
}

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA::kernel
