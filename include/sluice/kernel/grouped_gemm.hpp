/// The three products of a linear map y = W x on the packed rows of one expert, all made of register tiles.
///
///   multiply_panels      y [n, 2 panels] = x W^T       forward: rows x weights, two panels of outputs at a time
///   multiply_transposed  dx^T [inputs, n] = W^T dy^T   backward: the weights are broadcast, the rows lie in the lanes, so one
///                                                      copy of W serves both directions
///   add_weight_gradient  dW [2 panels, inputs] += dy^T x
///
/// Blocking. A part is k_block steps of two panels: 64 KB of floats at L = 16, which stays in the second-level cache
/// while a chunk of blocks of rows passes over it; sums wait in between in `sums`, on the stack. While a part is in use
/// the next one is prefetched, each block of rows asking for its share. A chunk has as many blocks as leave room in
/// that cache for their own k_block steps beside both parts, and the chunks of an expert are equal, since for each of
/// them all weights come by again. Sums go on where they stopped, so blocking does not change a bit.
///
/// Panels of storages that are expanded (kernel/storage.hpp) come in smaller parts: so many steps of all streams as the
/// first-level cache holds, expanded once for all blocks of rows of the chunk.
#pragma once

#include <sluice/core/function_ref.hpp>
#include <sluice/kernel/linear_map.hpp>
#include <sluice/kernel/row_blocks.hpp>

namespace sluice::inline SLUICE_ISA::kernel {

/// Steps of one part. A multiple of every vector width.
inline constexpr index_t k_block = 512;
/// What blocking takes of a core's second-level cache: four fifths of 512 KB, which nearly every one has today.
inline constexpr index_t second_level_bytes = 512 * 1024 / 5 * 4;
/// What an expanded part takes, at most: it shares a first-level cache of 32 KB or more with a block of rows.
inline constexpr index_t expanded_bytes = 24 * 1024;
/// Blocks of rows that pass over a part together, at most: 10 of floats at 32 registers of 16 lanes, whose sums take
/// 18 KB of stack.
template <typename Storage>
inline constexpr index_t chunk_blocks = (second_level_bytes -
                                         2 * tile_vectors * sluice::detail::tiles_of<Storage>::bytes(k_block)) /
                                        (tile_rows * k_block * index_t(sizeof(sluice::detail::activation_of<Storage>)));

/// Panels of a pair; and what is done with the sums of a block of rows with one. They are called once a tile, and not
/// compiled into the products, which are the same functions for all who multiply.
using pair_panels = sluice::detail::function_ref<streams<const std::byte*>(index_t pair)>;
template <typename Scalar>
using take_sums = sluice::detail::function_ref<void(index_t block, index_t pair, const streams<const Scalar*>& sums)>;

namespace detail {

template <typename T, std::size_t N>
std::array<T*, N> advance(std::array<T*, N> at, index_t by) noexcept {
  for (T*& p : at) p += by;
  return at;
}

/// Steps of a part that so many streams are expanded to: a power of two, and 32 inputs at least.
template <typename Tiles>
constexpr index_t expanded_steps(int vectors) {
  index_t steps = k_block;
  while (steps * Tiles::group > 32 && vectors * Tiles::bytes(steps) > expanded_bytes) steps /= 2;
  return steps;
}

/// Where about the weights of an input begin in a panel: for prefetching, which is even over the inputs of a block.
template <typename Storage>
constexpr index_t bytes_about(index_t input) {
  constexpr index_t block = sluice::detail::block_inputs<Storage>();
  return input * sluice::detail::panel_bytes<Storage>(block) / block;
}

/// The tiles that meet so many streams of a storage.
template <typename Storage, int Vectors>
using tiles_for = std::conditional_t<(Vectors > tile_vectors), sluice::detail::low_tiles_of<Storage>,
                                     sluice::detail::tiles_of<Storage>>;
/// Whether they read something else than its panels.
template <typename Storage, int Vectors>
inline constexpr bool are_expanded =
    sluice::detail::is_expanded<Storage> &&
    std::same_as<tiles_for<Storage, Vectors>, sluice::detail::tiles_of<Storage>>;

/// Where streams are expanded to; nothing for tiles that read panels themselves.
template <typename Storage, int Vectors, bool AreExpanded = are_expanded<Storage, Vectors>>
struct expanded_streams {
  using tiles = tiles_for<Storage, Vectors>;
  static constexpr index_t steps = k_block;

  static streams<typename tiles::cursor, Vectors> part(const Storage& storage,
                                                       const streams<const std::byte*, Vectors>& panels, index_t k,
                                                       index_t) {
    streams<typename tiles::cursor, Vectors> at;
    for (std::size_t v = 0; v < at.size(); ++v)
      at[v] = sluice::detail::tiles_object<tiles>(storage).at(panels[v] + tiles::bytes(k));
    return at;
  }
};
template <typename Storage, int Vectors>
struct expanded_streams<Storage, Vectors, true> {
  using tiles = tiles_for<Storage, Vectors>;
  static constexpr index_t steps = expanded_steps<tiles>(Vectors), stream = tiles::bytes(steps);

  alignas(64) std::byte memory[as_size(Vectors * stream)];

  /// Steps k .. k + count of all streams.
  streams<typename tiles::cursor, Vectors> part(const Storage& storage,
                                                const streams<const std::byte*, Vectors>& panels, index_t k,
                                                index_t count) {
    streams<typename tiles::cursor, Vectors> at;
    for (std::size_t v = 0; v < at.size(); ++v) {
      std::byte* const to = memory + index_t(v) * stream;
      if constexpr (Vectors > tile_vectors) {
        const index_t here = bytes_about<Storage>(k * tiles::group),
                      end = bytes_about<Storage>((k + count) * tiles::group);
        for (index_t line = here; line < end; line += 64) prefetch(panels[v] + line + low_tile_ahead);
      }
      sluice::detail::expand(storage, panels[v], k * tiles::group, (k + count) * tiles::group, to);
      at[v] = tiles().at(to);
    }
    return at;
  }
};

/// multiply_panels for Pairs pairs from q on.
template <typename Storage, int Pairs>
void multiply_pairs(const Storage& storage, const packed_rows<Storage>& x, const row_blocks& rows, index_t first,
                    index_t last, index_t q, const pair_panels& panels_of,
                    const take_sums<typename Storage::scalar>& epilogue) {
  using scalar = typename Storage::scalar;
  constexpr int vectors = Pairs * tile_vectors;
  using tiles = tiles_for<Storage, vectors>;
  constexpr index_t lanes = simd_width<scalar>;
  using expanded_type = expanded_streams<Storage, vectors>;
  constexpr index_t part = expanded_type::steps;
  /// Bytes of so many steps of a stream, as a panel has them, for what is prefetched.
  const auto bytes = [](index_t steps) {
    if constexpr (are_expanded<Storage, vectors>)
      return bytes_about<Storage>(steps * tiles::group);
    else
      return tiles::bytes(steps);
  };
  alignas(64) scalar sums[as_size(chunk_blocks<Storage> * tile_rows * tile_vectors * lanes)];
  expanded_type expanded;
  const index_t vector_sums = rows.height() * lanes;
  const auto sums_of = [&](index_t b) {
    streams<scalar*, vectors> at;
    for (int v = 0; v < vectors; ++v)
      at[static_cast<std::size_t>(v)] = sums + ((b - first) * vectors + v) * vector_sums;
    return at;
  };
  streams<const std::byte*, vectors> weights;
  for (int i = 0; i < Pairs; ++i) std::ranges::copy(panels_of(q + i), weights.begin() + i * tile_vectors);
  const index_t steps = packed_rows<Storage>::steps(x.inputs);
  for (index_t k = 0; k < steps; k += part) {
    tile_operands<tiles, vectors> t;
    t.inner = lanes;
    t.steps = (std::min)(part, steps - k);
    t.weights = expanded.part(storage, weights, k, t.steps);
    t.is_expanded = are_expanded<Storage, vectors>;
    t.accumulate = k > 0;
    streams<const std::byte*> coming{};
    prefetch_ahead ahead;
    index_t share = 0;
    if constexpr (Pairs == 1) {
      const bool more = k + part < steps;
      coming = more ? advance(weights, bytes(k + part)) : panels_of(q + 1);
      share = bytes((std::min)(part, more ? steps - k - part : steps)) / (last - first);
      ahead.stride = (share + t.steps - 1) / t.steps;
    }
    for (index_t b = first; b < last; ++b) {
      t.jump = rows.size(b) * lanes;
      t.a = x.block(rows, b) + k * rows.size(b);
      if constexpr (SumsInBlocks<Storage>) t.factors = x.factors_of(rows, b) + k / tiles::block * rows.size(b);
      t.sums = sums_of(b);
      ahead.from = advance(coming, (b - first) * share);
      run_tile<tiles, forward_order<scalar>>(rows.size(b), t, ahead);
    }
  }
  for (index_t b = first; b < last; ++b)
    for (int i = 0; i < Pairs; ++i) {
      const auto at = sums_of(b);
      epilogue(b, q + i, streams<const scalar*>{at[as_size(2 * i)], at[as_size(2 * i + 1)]});
    }
}

}  // namespace detail

/// epilogue(b, q, sums) for the pairs begin .. end of panels and blocks b of an expert's rows, where sums[v]
/// [size of b][L] are the dot products of the rows with the outputs of panel v of the pair. panels_of(q) is pair q;
/// panels_of(end) is what will be used next, and is only prefetched. `blocks` are those that have a part in it.
template <typename Storage>
void multiply_panels(const Storage& storage, const packed_rows<Storage>& x, const row_blocks& rows,
                     const block_range& blocks, index_t begin, index_t end, const pair_panels& panels_of,
                     const take_sums<typename Storage::scalar>& epilogue) {
  const index_t most = pairs_at_once(rows.height()), count = blocks.end - blocks.begin;
  const index_t chunks = (count + chunk_blocks<Storage> - 1) / chunk_blocks<Storage>;
  for (index_t chunk = 0; chunk < chunks; ++chunk) {
    const index_t first = blocks.begin + count * chunk / chunks, last = blocks.begin + count * (chunk + 1) / chunks;
    const auto panels_or_next = [&](index_t q) { return panels_of(q == end && chunk + 1 < chunks ? begin : q); };
    for (index_t q = begin; q < end;) {
      const index_t left = end - q;
      if (most >= 4 && left >= 4) {
        detail::multiply_pairs<Storage, 4>(storage, x, rows, first, last, q, panels_or_next, epilogue);
        q += 4;
      } else if (most >= 2 && left >= 2) {
        detail::multiply_pairs<Storage, 2>(storage, x, rows, first, last, q, panels_or_next, epilogue);
        q += 2;
      } else {
        detail::multiply_pairs<Storage, 1>(storage, x, rows, first, last, q, panels_or_next, epilogue);
        q += 1;
      }
    }
  }
}

/// The same for all blocks of the expert's rows.
template <typename Storage>
void multiply_panels(const Storage& storage, const packed_rows<Storage>& x, const row_blocks& rows, index_t begin,
                     index_t end, const pair_panels& panels_of, const take_sums<typename Storage::scalar>& epilogue) {
  multiply_panels<Storage>(storage, x, rows, block_range{0, rows.count()}, begin, end, panels_of, epilogue);
}

/// Rows with one row a lane, in groups of L: [group][k][L]. What multiply_transposed reads.
template <typename Scalar>
struct lane_rows {
  Scalar* numbers = nullptr;
  index_t cols = 0;
  static constexpr index_t lanes = simd_width<Scalar>;

  static index_t groups(index_t rows) noexcept { return (rows + lanes - 1) / lanes; }
  Scalar* group(index_t g) const noexcept { return numbers + g * cols * lanes; }
};

/// sums [groups][end - begin][L] (+)= W^T dy^T: inputs begin .. end of the map, 4 L at most, for `groups` groups of
/// rows of dy. Weights of another storage are decoded first, some panels at a time.
template <typename Map, typename Scalar>
void multiply_transposed(const Map& w, index_t begin, index_t end, const lane_rows<Scalar>& dy, index_t first_group,
                         index_t groups, Scalar* sums, bool accumulate) {
  using storage = full_precision<Scalar>;
  constexpr index_t lanes = simd_width<Scalar>;
  constexpr bool is_decoded = !sluice::detail::is_trainable_storage<typename Map::storage>;
  // Panels of W lie far apart, often by a power of two: few of them at a time, so that they do not push each other out,
  // and two for every pair of groups, whose tiles ask for the same inputs of the two that come in their place.
  constexpr index_t most_panels = 8;
  const index_t together = std::clamp<index_t>(groups + groups % 2, 2, most_panels);
  alignas(64) Scalar spare[as_size(tile_rows * lanes)];
  alignas(64) Scalar decoded[as_size(is_decoded ? most_panels * 4 * lanes * lanes : 1)];
  const index_t count = end - begin;
  const index_t tiles = (count + tile_rows - 1) / tile_rows;
  const index_t height = (count + tiles - 1) / tiles;
  const auto numbers = [&](index_t p) { return reinterpret_cast<const Scalar*>(w.panel(p)) + begin * lanes; };
  for (index_t p = 0; p < w.panels(); p += together) {
    tile_operands<storage> t;
    t.inner = lanes;
    t.steps = (std::min)(together * lanes, w.outputs() - p * lanes);
    t.accumulate = accumulate || p > 0;
    const Scalar* weights = decoded;
    if constexpr (is_decoded) {
      t.jump = count * lanes;
      for (index_t q = 0; q * lanes < t.steps; ++q)
        w.format().decode(w.panel(p + q), begin, end, decoded + q * count * lanes);
    } else {
      t.jump = w.panels() > 1 ? numbers(1) - numbers(0) : 0;
      weights = numbers(p);
    }
    for (index_t i = 0; i < count; i += height) {
      const index_t some = (std::min)(height, count - i);
      t.a = weights + i * lanes;
      for (index_t g = 0; g < groups; g += tile_vectors) {
        const bool both = g + 1 < groups;
        const Scalar* rows = dy.group(first_group + g) + p * lanes * lanes;
        t.weights = {typename storage::cursor{rows}, typename storage::cursor{both ? rows + dy.cols * lanes : rows}};
        Scalar* out = sums + (g * count + i) * lanes;
        t.sums = {out, both ? out + count * lanes : spare};
        prefetch_ahead ahead;
        const auto coming = [&](index_t q) {
          const bool there = !is_decoded && p + together + q < w.panels();
          return reinterpret_cast<const std::byte*>(there ? numbers(p + together + q) + i * lanes : rows);
        };
        ahead.from = {coming(g), coming(g + 1)};
        ahead.stride = (some * lanes * index_t(sizeof(Scalar)) + t.steps - 1) / t.steps;
        run_tile<storage, forward_order<Scalar>>(some, t, ahead);
      }
    }
  }
}

/// gradient[v] [inputs][L] += sum over the expert's rows of x(row, input) * dy[v](row, lane), for panel[v] of dy; a
/// null gradient is left out. x and dy are packed rows of the same blocks.
template <typename Scalar>
void add_weight_gradient(const row_blocks& rows, const packed_rows<full_precision<Scalar>>& x,
                         const streams<packed_rows<full_precision<Scalar>>>& dy, const streams<index_t>& panel,
                         const streams<Scalar*>& gradient) {
  using storage = full_precision<Scalar>;
  if (gradient[0] == nullptr && gradient[1] == nullptr) return;
  constexpr index_t lanes = simd_width<Scalar>;
  constexpr int height = lanes <= tile_rows ? static_cast<int>(lanes) : static_cast<int>(lanes) / 2;
  alignas(64) Scalar spare[as_size(tile_vectors)][as_size(height * lanes)];
  const auto run = [&](index_t b, index_t blocks, index_t input, const streams<Scalar*>& sums) {
    const index_t size = rows.size(b);
    tile_operands<storage> t;
    t.a = x.panel(rows, b, 0, input / lanes) + input % lanes;
    t.inner = size;
    t.jump = size * packed_rows<storage>::pitch(x.inputs);
    t.steps = size * blocks;
    t.weights = {typename storage::cursor{dy[0].panel(rows, b, 0, panel[0])},
                 typename storage::cursor{dy[1].panel(rows, b, 0, panel[1])}};
    t.weight_gap = size * (packed_rows<storage>::pitch(dy[0].inputs) - lanes);
    t.sums = sums;
    t.accumulate = true;
    // What comes after the next: a line each, once. Asked for with every step they cost a tenth of the time.
    for (std::size_t v = 0; v < tile_vectors; ++v)
      for (index_t line = 0; line < height; ++line) prefetch(sums[v] + (2 * height + line) * lanes);
    const streams<const std::byte*> here{reinterpret_cast<const std::byte*>(t.weights[0].address),
                                         reinterpret_cast<const std::byte*>(t.weights[1].address)};
    detail::tile<storage, transposed_order<Scalar>, height, tile_vectors>(t, {here, 0});
  };
  const index_t full = rows.rows() / rows.height();
  for (index_t input = 0; input < x.inputs; input += height) {
    const index_t valid = (std::min<index_t>)(height, x.inputs - input);
    streams<Scalar*> sums;
    for (std::size_t v = 0; v < tile_vectors; ++v) {
      const bool direct = gradient[v] != nullptr && valid == height;
      sums[v] = direct ? gradient[v] + input * lanes : spare[v];
      if (!direct) std::fill_n(spare[v], height * lanes, Scalar(0));
    }
    if (full > 0) run(0, full, input, sums);
    if (full < rows.count()) run(full, 1, input, sums);
    if (valid == height) continue;
    for (std::size_t v = 0; v < tile_vectors; ++v)
      for (index_t i = 0; gradient[v] != nullptr && i < valid * lanes; ++i)
        gradient[v][input * lanes + i] += spare[v][i];
  }
}

}  // namespace sluice::inline SLUICE_ISA::kernel
