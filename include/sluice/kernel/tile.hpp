/// The register tile: the one loop in which nearly all arithmetic of the library happens.
///
///   sums [rows][V vectors]  (+)=  sum over steps k of  a(row, k) * w_v(k)      a is broadcast, w_0 .. w_V-1 are vectors
///
/// Two streams of panels (kernel/storage.hpp) meet up to tile_rows rows. One step loads a vector from each stream and
/// multiplies it by one broadcast activation a row. a(row, k) lies at a + k / inner * jump + k % inner * Step + row *
/// Row. Both operands of every product in the library, forward and backward, are one of two orders of that kind:
///   forward order      Row = L, Step = 1: rows of a panelled matrix, its columns running along k
///   transposed order   Row = 1, Step = L: columns of a panelled matrix, its rows running along k
///
/// How tall: R registers hold 2 tile_rows sums, the 2 vectors of a step, one broadcast, and one to spare, so
/// tile_rows = (R - 4) / 2: 14 of AVX-512's and NEON's 32 registers, 6 of the 16 before. A step of 14 x 2 does 28 fused
/// multiply-adds with 16 loads: the loads hide, and the two or four cycles of latency do too.
/// Wider tiles (8 x 3, 6 x 4) reach the same rate and read more panels at once; 2 is what gate and up make.
///
/// A low tile has too few sums to hide that latency, and takes several pairs of streams: V vectors where V (rows + 1) +
/// 1 registers are there, 8 for one row or two, 4 for up to six (of 32).
///
/// Every sum is one chain along k, whatever the height of the tile: a row's result does not depend on its neighbours.
/// Where a storage has partial sums they are what stays in registers, and after every block of steps they go into
/// `sums`.
///
/// While it computes, a tile prefetches what comes next, a little with every step: from memory that is what counts. One
/// with several pairs has no time to spare, every request takes the place of a load: it asks for lines a little further
/// on in its own streams, at every second step, since machines fetch lines in pairs; none where streams were expanded.
#pragma once

#include <sluice/kernel/storage.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

namespace sluice::inline SLUICE_ISA::kernel {

#if defined(__AVX512F__) || defined(__aarch64__) || defined(_M_ARM64)
inline constexpr int vector_registers = 32;
#else
inline constexpr int vector_registers = 16;
#endif

/// Streams of weights, and vectors of sums a row, of any tile but the low ones.
inline constexpr int tile_vectors = 2;
inline constexpr int tile_rows = (vector_registers - 4) / tile_vectors;

/// Pairs of streams that this many rows meet at once: 4, 2 or 1.
constexpr index_t pairs_at_once(index_t rows) noexcept {
  index_t pairs = 4;
  while (pairs > 1 && tile_vectors * pairs * (rows + 1) + 1 >= vector_registers) pairs /= 2;
  return pairs;
}

/// How the broadcast operand lies in memory, in units of its elements, and whether streams have gaps between runs.
template <index_t Row, index_t Step, bool Gaps>
struct operand_order {
  static constexpr index_t row = Row;
  static constexpr index_t step = Step;
  static constexpr bool gaps = Gaps;
};
template <typename Scalar>
using forward_order = operand_order<simd_width<Scalar>, 1, false>;
template <typename Scalar>
using transposed_order = operand_order<1, simd_width<Scalar>, true>;

template <typename Pointer, int Vectors = tile_vectors>
using streams = std::array<Pointer, static_cast<std::size_t>(Vectors)>;

/// How far ahead of itself a tile with several pairs prefetches, in bytes of each stream.
inline constexpr std::ptrdiff_t low_tile_ahead = 2048;

/// What a tile of one pair prefetches: two places that move on by `stride` bytes with every step.
struct prefetch_ahead {
  streams<const std::byte*> from{};
  std::ptrdiff_t stride = 0;
};

/// Where the operands of a tile lie.
template <typename Storage, int Vectors = tile_vectors>
struct tile_operands {
  using scalar = typename Storage::scalar;

  const typename Storage::activation* a = nullptr;
  index_t jump = 0;   ///< distance of a between runs of `inner` steps
  index_t inner = 0;  ///< steps of a run
  streams<typename Storage::cursor, Vectors> weights{};
  index_t weight_gap = 0;  ///< elements that a stream skips after a run of `inner` steps, in an order with gaps
  index_t steps = 0;
  bool is_expanded = false;                                     ///< whether streams lie in the first cache already
  const sluice::detail::factor_of<Storage>* factors = nullptr;  ///< [blocks][rows], with partial sums
  streams<scalar*, Vectors> sums{};                             ///< [rows][lanes] of each stream
  bool accumulate = false;                                      ///< start from what sums hold, not from zero
};

namespace detail {

/// The sums of a tile between its steps: in registers, from the first step to the last.
template <typename Storage, int Rows, int Vectors>
struct tile_sums {
  using vector = simd<typename Storage::scalar>;
  using operands = tile_operands<Storage, Vectors>;
  static constexpr std::size_t rows = as_size(Rows), vectors = as_size(Vectors);
  static constexpr index_t lanes = simd_width<typename Storage::scalar>;

  vector of[rows][vectors];

  void begin(const operands& t) noexcept {
    if (t.accumulate) {
      SLUICE_UNROLL for (std::size_t i = 0; i < rows; ++i)
        SLUICE_UNROLL for (std::size_t v = 0; v < vectors; ++v) of[i][v] = load(t.sums[v] + index_t(i) * lanes);
    } else {
      SLUICE_UNROLL for (std::size_t i = 0; i < rows; ++i)
        SLUICE_UNROLL for (std::size_t v = 0; v < vectors; ++v) of[i][v] = vector(typename Storage::scalar(0));
    }
  }
  /// How many of the next `steps` steps may be taken before `pause` is called.
  index_t resume(const operands&, typename Storage::cursor*, index_t steps) noexcept { return steps; }
  void pause(const operands&, typename Storage::cursor*) noexcept {}
  void end(const operands& t) noexcept {
    SLUICE_UNROLL for (std::size_t i = 0; i < rows; ++i)
      SLUICE_UNROLL for (std::size_t v = 0; v < vectors; ++v)
        store<typename Storage::scalar>(t.sums[v] + index_t(i) * lanes, of[i][v]);
  }
};

/// Partial sums: for a block in registers, while what the blocks before have come to waits in memory.
template <SumsInBlocks Storage, int Rows, int Vectors>
struct tile_sums<Storage, Rows, Vectors> {
  using scalar = typename Storage::scalar;
  using operands = tile_operands<Storage, Vectors>;
  static constexpr std::size_t rows = as_size(Rows), vectors = as_size(Vectors);
  static constexpr index_t lanes = simd_width<scalar>;

  typename Storage::partial of[rows][vectors];
  index_t left = 0;                                             ///< steps of the block at hand
  const sluice::detail::factor_of<Storage>* factors = nullptr;  ///< of that block
  streams<scalar*, Vectors> sums{};  // copies: a store might change the operands themselves, for all a compiler knows

  void begin(const operands& t) noexcept {
    factors = t.factors;
    sums = t.sums;
    if (t.accumulate) return;
    SLUICE_UNROLL for (std::size_t i = 0; i < rows; ++i)
      SLUICE_UNROLL for (std::size_t v = 0; v < vectors; ++v)
        store<scalar>(sums[v] + index_t(i) * lanes, simd<scalar>(scalar(0)));
  }
  index_t resume(const operands&, typename Storage::cursor* w, index_t steps) noexcept {
    if (left == 0) {
      left = Storage::block;
      SLUICE_UNROLL for (std::size_t v = 0; v < vectors; ++v) w[v].enter();
      SLUICE_UNROLL for (std::size_t i = 0; i < rows; ++i)
        SLUICE_UNROLL for (std::size_t v = 0; v < vectors; ++v)
          of[i][v] = Storage::start(factors[i]);
    }
    const index_t some = (std::min)(steps, left);
    left -= some;
    return some;
  }
  void pause(const operands&, typename Storage::cursor* w) noexcept {
    if (left > 0) return;
    decltype(w->leave()) terms[vectors];  // for all rows: compilers would read them again after every store
    SLUICE_UNROLL for (std::size_t v = 0; v < vectors; ++v) terms[v] = w[v].leave();
    SLUICE_UNROLL for (std::size_t i = 0; i < rows; ++i)
      SLUICE_UNROLL for (std::size_t v = 0; v < vectors; ++v) {
        scalar* const at = sums[v] + index_t(i) * lanes;
        store<scalar>(at, w[v].finish(of[i][v], factors[i], terms[v], load(at)));
      }
    factors += rows;
  }
  void end(const operands&) noexcept {}
};

/// Sums says where the sums begin and what becomes of them; its operands are tile_operands or derive from them.
template <typename Storage, typename Order, int Rows, int Vectors, typename Sums = tile_sums<Storage, Rows, Vectors>>
void tile(const typename Sums::operands& t, const prefetch_ahead& ahead) noexcept {
  constexpr std::size_t rows = as_size(Rows), vectors = as_size(Vectors);
  Sums sums;
  sums.begin(t);
  typename Storage::cursor w[vectors];
  SLUICE_UNROLL for (std::size_t v = 0; v < vectors; ++v) w[v] = t.weights[v];
  [[maybe_unused]] streams<const std::byte*> next = ahead.from;
  constexpr index_t units = sluice::detail::units_of<Storage>;
  [[maybe_unused]] const index_t between_lines = t.is_expanded ? ~index_t(0) : 2 * units - 1;
  const typename Storage::activation* run = t.a;
  for (index_t begin = 0; begin < t.steps; begin += t.inner) {
    const index_t count = (std::min)(t.inner, t.steps - begin);
    const typename Storage::activation* a = run;
    for (index_t k = 0; k < count;) {
      const index_t pause = k + sums.resume(t, w, count - k);
      for (; k < pause; k += units) {
        std::remove_cvref_t<decltype(w[0].next())> weights[vectors];
        SLUICE_UNROLL for (std::size_t v = 0; v < vectors; ++v) {
          weights[v] = w[v].next();
          if constexpr (Vectors == tile_vectors) {
            prefetch(next[v]);
            next[v] += ahead.stride;
          } else if ((k & between_lines) == 0) {
            prefetch(reinterpret_cast<const std::byte*>(w[v].address) + low_tile_ahead);
          }
        }
        SLUICE_UNROLL for (std::size_t i = 0; i < rows; ++i)
          SLUICE_UNROLL for (std::size_t v = 0; v < vectors; ++v)
            SLUICE_UNROLL for (index_t u = 0; u < units; ++u)
              sums.of[i][v] = Storage::multiply_add(a[index_t(i) * Order::row + u * Order::step],
                                                    sluice::detail::weights_of_step(weights[v], u), sums.of[i][v]);
        a += units * Order::step;
      }
      sums.pause(t, w);
    }
    run += t.jump;
    if constexpr (Order::gaps) SLUICE_UNROLL for (std::size_t v = 0; v < vectors; ++v) w[v].address += t.weight_gap;
  }
  sums.end(t);
}

template <typename Storage, typename Order, int Vectors>
using tile_function = void (*)(const tile_operands<Storage, Vectors>&, const prefetch_ahead&) noexcept;

/// The largest height that meets this many streams at once.
constexpr int highest_tile(int vectors) noexcept {
  int rows = tile_rows;
  while (pairs_at_once(rows) * tile_vectors < vectors) --rows;
  return rows;
}

/// The tile of every height: tiles[rows - 1].
template <typename Storage, typename Order, int Vectors>
inline constexpr auto tiles = []<int... I>(std::integer_sequence<int, I...>) {
  return std::array<tile_function<Storage, Order, Vectors>, sizeof...(I)>{&tile<Storage, Order, I + 1, Vectors>...};
}(std::make_integer_sequence<int, highest_tile(Vectors)>{});

}  // namespace detail

/// Runs a tile of 1 to tile_rows rows, or, with more than two streams, of so few that they may meet that many.
template <typename Storage, typename Order, int Vectors>
void run_tile(index_t rows, const tile_operands<Storage, Vectors>& operands, const prefetch_ahead& ahead) noexcept {
  detail::tiles<Storage, Order, Vectors>[static_cast<std::size_t>(rows - 1)](operands, ahead);
}

}  // namespace sluice::inline SLUICE_ISA::kernel
