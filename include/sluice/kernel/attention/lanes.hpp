/// A block of queries that share a key head, side by side in the lanes of vectors.
///
///   lane l of a range is head l % G of query l / G           G query heads share the key head (kernel/attention/heads.hpp)
///   packed:   [width][L], L lanes, whole vectors of them; lanes without a query repeat the last one
///
/// With queries in lanes, scores of a block of keys are [keys][L]: maxima, sums and factors of a query are operations
/// between rows, keys and values are read where they lie, and a head may have any width. What becomes of a lane does
/// not depend on its place or its neighbours.
#pragma once

#include <sluice/kernel/attention/heads.hpp>
#include <sluice/kernel/gemm.hpp>

#include <algorithm>

namespace sluice::inline SLUICE_ISA::kernel {

/// Lanes of a block, as many as products take at a time, and keys of a block of scores: they, two such blocks of
/// numbers and the keys stay in the first cache.
template <typename Scalar>
inline constexpr index_t attention_lanes = 2 * simd_width<Scalar>;
inline constexpr index_t attention_keys = 64;

template <typename Scalar>
struct query_lanes {
  const attention_shape& shape;
  const attended_range& range;
  index_t key_head = 0;
  index_t first = 0;  ///< lane of the range
  index_t count = 0;

  /// With room up to a whole vector.
  index_t padded() const noexcept { return (count + simd_width<Scalar> - 1) / simd_width<Scalar> * simd_width<Scalar>; }
  index_t query(index_t lane) const noexcept { return (first + lane) / shape.shared(); }
  index_t row(index_t lane) const noexcept { return range.first_query + query(lane); }
  index_t head(index_t lane) const noexcept { return shape.head(key_head, (first + lane) % shape.shared()); }
  template <typename Number>
  Number* at(const head_rows<Number>& rows, index_t lane) const noexcept {
    return rows.at(row(lane), head(lane));
  }
  /// Keys of the range that a lane sees, from the first on: lanes behind it see no fewer.
  index_t seen(index_t lane) const noexcept { return shape.seen(range, query(lane)); }
  index_t most_keys() const noexcept { return seen(count - 1); }
};

/// packed [width][L] = factor * the lanes' rows. Lanes without a query get those of the last one.
template <typename Scalar>
void pack_lanes(const query_lanes<Scalar>& lanes, const head_rows<const Scalar>& rows, index_t width, Scalar factor,
                Scalar* packed) noexcept {
  constexpr index_t vector = simd_width<Scalar>;
  const index_t L = lanes.padded();
  const simd<Scalar> factors(factor);
  for (index_t l = 0; l < L; l += vector) {
    const Scalar* from[as_size(vector)];
    for (index_t i = 0; i < vector; ++i) from[i] = lanes.at(rows, (std::min)(l + i, lanes.count - 1));
    for (index_t c = 0; c < width; c += vector) {
      const index_t columns = (std::min)(vector, width - c);
      simd<Scalar> block[as_size(vector)];
      if (columns == vector)
        SLUICE_UNROLL for (index_t i = 0; i < vector; ++i) block[i] = factors * load(from[i] + c);
      else
        SLUICE_UNROLL for (index_t i = 0; i < vector; ++i) block[i] =
            factors * load_part(from[i] + c, columns, Scalar(0));
      transpose<Scalar>(block);
      SLUICE_UNROLL for (index_t i = 0; i < vector; ++i) if (i < columns)
          store<Scalar>(packed + (c + i) * L + l, block[i]);
    }
  }
}

/// The lanes' rows (+)= packed [width][L] * factors [L].
template <typename Scalar>
void unpack_lanes(const query_lanes<Scalar>& lanes, const Scalar* packed, const Scalar* factors, index_t width,
                  const head_rows<Scalar>& rows, write mode) noexcept {
  constexpr index_t vector = simd_width<Scalar>;
  const index_t L = lanes.padded();
  for (index_t l = 0; l < L; l += vector) {
    Scalar* to[as_size(vector)];
    const index_t used = (std::min)(vector, lanes.count - l);
    for (index_t i = 0; i < used; ++i) to[i] = lanes.at(rows, l + i);
    const simd<Scalar> factor = load(factors + l);
    for (index_t c = 0; c < width; c += vector) {
      const index_t columns = (std::min)(vector, width - c);
      simd<Scalar> block[as_size(vector)];
      SLUICE_UNROLL for (index_t i = 0; i < vector; ++i) block[i] =
          load(packed + (c + (std::min)(i, columns - 1)) * L + l) * factor;
      transpose<Scalar>(block);
      for (index_t i = 0; i < used; ++i) {
        Scalar* place = to[i] + c;
        if (columns == vector)
          store<Scalar>(place, mode == write::accumulate ? block[i] + load(place) : block[i]);
        else
          store_part<Scalar>(
              place, mode == write::accumulate ? block[i] + load_part(place, columns, Scalar(0)) : block[i], columns);
      }
    }
  }
}

/// Scores [keys][L] of the range's keys first .. first + keys become `hidden` where a lane does not see the key: where
/// it comes after the lane's query, or is nobody's to see. Lanes without a query keep theirs.
template <typename Scalar>
void hide_scores(const attention_inputs<Scalar>& in, const query_lanes<Scalar>& lanes, index_t first, index_t keys,
                 Scalar hidden, Scalar* scores) noexcept {
  constexpr index_t vector = simd_width<Scalar>;
  const index_t L = lanes.padded();
  const simd<Scalar> value(hidden);
  if (lanes.seen(0) < first + keys)
    for (index_t l = 0; l < L; l += vector) {
      Scalar ends[as_size(vector)];  // keys of these that a lane sees
      for (index_t i = 0; i < vector; ++i) {
        const index_t seen = l + i < lanes.count ? lanes.seen(l + i) - first : keys;
        ends[i] = static_cast<Scalar>(std::clamp<index_t>(seen, 0, keys));
      }
      const simd<Scalar> end = load(ends);
      for (auto j = static_cast<index_t>(ends[0]); j < keys; ++j) {
        Scalar* at = scores + j * L + l;
        store<Scalar>(at, xsimd::select(simd<Scalar>(static_cast<Scalar>(j)) < end, load(at), value));
      }
    }
  if (!in.key_mask.empty())
    for (index_t j = 0; j < keys; ++j)
      if (in.is_hidden(lanes.range.first_key + first + j)) std::fill_n(scores + j * L, L, hidden);
}

/// copy [count][width] = some rows of one head, without the gaps that make rows slow to read again, and asks for as
/// many of those after them as there are before `end`.
template <typename Scalar>
void copy_rows(const head_rows<const Scalar>& rows, index_t head, index_t first, index_t count, index_t end,
               index_t width, Scalar* copy) noexcept {
  constexpr index_t line = 64 / static_cast<index_t>(sizeof(Scalar));
  for (index_t j = 0; j < count; ++j) {
    std::copy_n(rows.at(first + j, head), width, copy + j * width);
    if (first + count + j < end)
      for (index_t c = 0; c < width; c += line) prefetch(rows.at(first + count + j, head) + c);
  }
}

}  // namespace sluice::inline SLUICE_ISA::kernel
