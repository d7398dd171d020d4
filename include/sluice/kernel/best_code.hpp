/// Which of C rows of keys has the greatest product with a row of x: the search of codebooks.
///
///   ids[t] = arg max over c of  x[t] . keys[c] + offsets[c]          scores[t] = the maximum
///
/// With offsets -|c|^2 / 2 it is the nearest code, with none the greatest inner product. Equal scores: the lowest c.
/// A row of x that holds NaN gets no_code, as does one whose scores are all NaN; keys that hold NaN are never taken.
/// Every score is one chain along D, so a row's result depends neither on its neighbours nor on how rows are cut.
///
/// Blocking: a block of codes is packed into the second-level cache and all rows pass over it, a tile of them over all
/// of its panels, while what was best so far waits in the first. Where all rows make one tile, a block is what it takes
/// at once: keys are read once, from wherever they are, and packed no further than into the first-level cache. For one
/// row even that costs more than the products: kernel/likely_codes.hpp leaves only a few codes to the search.
#pragma once

#include <sluice/kernel/code_panels.hpp>
#include <sluice/kernel/grouped_gemm.hpp>
#include <sluice/kernel/likely_codes.hpp>

namespace sluice::inline SLUICE_ISA {

/// In the place of a code: what hidden tokens get.
inline constexpr index_t no_code = -1;

namespace kernel {

/// How a search of these rows is blocked, and where in its memory things lie.
template <typename Scalar>
struct code_blocking {
  static constexpr index_t lanes = simd_width<Scalar>;

  index_t rows = 0;
  index_t codes = 0;
  index_t width = 0;

  index_t pitch() const noexcept { return packed_rows<full_precision<Scalar>>::pitch(width); }
  /// Panels of a block: whole tiles of them, and half of what blocking takes of the second-level cache.
  index_t panels() const noexcept {
    const index_t all = (codes + lanes - 1) / lanes;
    const index_t panel_bytes = (width + 1) * lanes * index_t(sizeof(Scalar));
    const index_t some = rows <= tile_rows ? 1 : second_level_bytes / 2 / panel_bytes;
    return (std::clamp<index_t>(some, 1, (std::max<index_t>)(all, 1)) + tile_vectors - 1) / tile_vectors * tile_vectors;
  }

  index_t offsets_begin() const noexcept { return rows * pitch(); }
  index_t states_begin() const noexcept { return offsets_begin() + panels() * lanes; }
  index_t keys_begin() const noexcept { return states_begin() + rows * 2 * lanes; }
  /// Keys of likely codes, and then their offsets.
  index_t likely_begin() const noexcept { return keys_begin() + panels() * width * lanes; }
  /// Numbers of memory.
  index_t size() const noexcept { return likely_begin() + likely_codes<Scalar>::most * (width + 1); }
};

namespace detail {

/// Fills the states of all rows, whose blocks are at most Highest high.
template <typename Scalar, typename Rule, int Highest>
void search_codes(const row_blocks& blocks, const packed_rows<full_precision<Scalar>>& x, const code_keys<Scalar>& k,
                  const code_blocking<Scalar>& blocking, Scalar* memory) noexcept {
  constexpr index_t lanes = simd_width<Scalar>;
  Scalar* const states = memory + blocking.states_begin();
  const simd<Scalar> low(number_of_key<Scalar>(-infinity_key<Scalar>)),
      none = cast_bits<Scalar>(simd_keys<Scalar>(no_number<Scalar>));
  for (index_t i = 0; i < blocks.rows(); ++i) {
    store<Scalar>(states + i * 2 * lanes, low);
    store<Scalar>(states + i * 2 * lanes + lanes, none);
  }
  code_panels<Scalar> panels{memory + blocking.keys_begin(), memory + blocking.offsets_begin()};
  for (; panels.first < k.count; panels.first += panels.count * lanes) {
    const index_t left = (k.count - panels.first + lanes - 1) / lanes;
    panels.count = (std::min)(blocking.panels(), (left + tile_vectors - 1) / tile_vectors * tile_vectors);
    pack_codes(k, panels);
    for (index_t b = 0; b < blocks.count(); ++b)
      with_constant<Highest>(blocks.size(b), [&]<int Rows>(std::integral_constant<int, Rows>) {
        meet_panels<Scalar, Rule, Rows, tile_vectors>(x.block(blocks, b), k.width, panels,
                                                      states + blocks.begin(b) * 2 * lanes);
      });
  }
}

/// What the lanes of a state come to: the lowest of the codes with the greatest score.
template <typename Scalar>
index_t best_of_state(const Scalar* state) noexcept {
  using bits = ordered_bits<Scalar>;
  constexpr index_t lanes = simd_width<Scalar>;
  constexpr bits lowest = -(std::numeric_limits<bits>::max)();
  bits counted[as_size(lanes)];
  for (index_t l = 0; l < lanes; ++l) counted[l] = static_cast<bits>(l);
  const auto keys = order_keys<Scalar>(load(state));
  const auto number = cast_bits<bits>(load(state + lanes));
  const simd<bits> negated = simd<bits>(bits(0)) - (number + load(counted)), never(lowest);
  const auto greatest = keys == simd<bits>(largest_lane<bits>(keys));
  const simd<bits> among = select_lanes<bits>(greatest, negated, never);
  const bits best = largest_lane<bits>(select_lanes<bits>(number < simd<bits>(bits(0)), never, among));
  return best == lowest ? no_code : -index_t(best);
}

}  // namespace detail

/// ids [rows] and, unless null, scores [rows] for rows of x that lie x_stride apart. `memory` has
/// code_blocking{rows, codes, width}.size() numbers.
template <typename Scalar>
void best_code(const Scalar* x, index_t x_stride, index_t rows, const code_keys<Scalar>& k, index_t* ids,
               index_t ids_stride, Scalar* scores, Scalar* memory) {
  constexpr index_t lanes = simd_width<Scalar>;
  using storage = full_precision<Scalar>;
  const auto row_of = [&](index_t i) { return x + i * x_stride; };
  const auto unscaled = [](index_t) { return Scalar(1); };
  const auto search = [&]<typename Rule, int Highest>(Rule, std::integral_constant<int, Highest>,
                                                      const code_keys<Scalar>& among, index_t first, index_t count) {
    const code_blocking<Scalar> blocking{count, among.count, among.width};
    const row_blocks blocks(0, count);
    const packed_rows<storage> packed{.units = memory, .inputs = k.width};
    for (index_t b = 0; b < blocks.count(); ++b)
      pack_block(
          storage{}, packed, blocks, b, [&](index_t i) { return row_of(first + i); }, unscaled);
    detail::search_codes<Scalar, Rule, Highest>(blocks, packed, among, blocking, memory);
    const Scalar* state = memory + blocking.states_begin();
    for (index_t i = first; i < first + count; ++i, state += 2 * lanes) {
      const index_t id = ids[i * ids_stride] = detail::best_of_state(state);
      if (scores != nullptr) scores[i] = id == no_code ? quiet_nan<Scalar>() : state[id % lanes];
    }
  };
  constexpr index_t least_width = 16;  // measured: below it packing costs no more
  likely_codes<Scalar> likely;
  if (rows == 1 && k.width >= least_width && k.count > 2 * likely.most && find_likely_codes(x, k, likely)) {
    Scalar* const keys = memory + code_blocking<Scalar>{1, k.count, k.width}.likely_begin();
    Scalar* const offsets = keys + likely.most * k.width;
    for (index_t j = 0; j < likely.size(); ++j) {
      std::copy_n(k.keys + likely[j] * k.stride, k.width, keys + j * k.width);
      offsets[j] = k.offsets == nullptr ? Scalar(0) : k.offsets[likely[j]];
    }
    search(detail::greatest_score{}, std::integral_constant<int, 1>{},
           code_keys<Scalar>{keys, k.width, offsets, likely.size(), k.width}, 0, 1);
    *ids = likely[*ids];
    return;
  }
  search(detail::greatest_score{}, std::integral_constant<int, tile_rows>{}, k, 0, rows);
  for (index_t i = 0; i < rows; ++i)  // -infinity is a score too
    if (ids[i * ids_stride] == no_code && !any_nan(row_of(i), k.width))
      search(detail::first_score{}, std::integral_constant<int, 1>{}, k, i, 1);
}

}  // namespace kernel

}  // namespace sluice::inline SLUICE_ISA
