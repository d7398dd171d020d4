/// A block of queries that share a key head, side by side in the lanes of vectors.
///
///   lane l of a range is head l % G of query l / G           G query heads share the key head (kernel/attention/heads.hpp)
///   packed:   [width][L], L lanes, whole vectors of them; lanes without a query are zero
///
/// With queries in lanes, scores of a block of keys are [keys][L]: maxima, sums and factors of a query are operations
/// between rows, keys and values are read where they lie, and a head may have any width. What becomes of a lane does not
/// depend on its place or its neighbours.
#pragma once

#include <sluice/kernel/attention/heads.hpp>
#include <sluice/kernel/gemm.hpp>

#include <algorithm>

namespace sluice::inline SLUICE_ISA::kernel {

/// Lanes of a block at most, and keys of a block.
template <typename Scalar>
inline constexpr index_t attention_lanes = 4 * simd_width<Scalar>;
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
  /// Keys that the first and the last lane see: no lane sees fewer or more.
  index_t fewest_keys() const noexcept { return shape.seen(range, query(0)); }
  index_t most_keys() const noexcept { return shape.seen(range, query(count - 1)); }
};

/// packed [width][L] = factor * the lanes' rows.
template <typename Scalar>
void pack_lanes(const query_lanes<Scalar>& lanes, const head_rows<const Scalar>& rows, index_t width, Scalar factor,
                Scalar* packed) noexcept {
  constexpr index_t vector = simd_width<Scalar>;
  const index_t L = lanes.padded();
  const simd<Scalar> factors(factor);
  for (index_t l = 0; l < L; l += vector)
    for (index_t c = 0; c < width; c += vector) {
      simd<Scalar> block[as_size(vector)];
      const index_t columns = (std::min)(vector, width - c);
      for (index_t i = 0; i < vector; ++i) {
        block[i] = simd<Scalar>(Scalar(0));
        if (l + i >= lanes.count) continue;
        const Scalar* from = lanes.at(rows, l + i) + c;
        block[i] = factors * (columns == vector ? load(from) : load_part(from, columns, Scalar(0)));
      }
      transpose<Scalar>(block);
      for (index_t i = 0; i < columns; ++i) store<Scalar>(packed + (c + i) * L + l, block[i]);
    }
}

/// The lanes' rows (+)= packed [width][L] * factors [L].
template <typename Scalar>
void unpack_lanes(const query_lanes<Scalar>& lanes, const Scalar* packed, const Scalar* factors, index_t width,
                  const head_rows<Scalar>& rows, write mode) noexcept {
  constexpr index_t vector = simd_width<Scalar>;
  const index_t L = lanes.padded();
  for (index_t l = 0; l < L; l += vector)
    for (index_t c = 0; c < width; c += vector) {
      simd<Scalar> block[as_size(vector)];
      const index_t columns = (std::min)(vector, width - c);
      for (index_t i = 0; i < vector; ++i)
        block[i] = i < columns ? load(packed + (c + i) * L + l) * load(factors + l) : simd<Scalar>(Scalar(0));
      transpose<Scalar>(block);
      for (index_t i = 0; i < vector && l + i < lanes.count; ++i) {
        Scalar* to = lanes.at(rows, l + i) + c;
        if (mode == write::accumulate)
          block[i] = block[i] + (columns == vector ? load(to) : load_part(to, columns, Scalar(0)));
        columns == vector ? store<Scalar>(to, block[i]) : store_part<Scalar>(to, block[i], columns);
      }
    }
}

/// Calls f(place of a vector in a block of scores, its lanes see this key) for the keys first .. first + keys of the
/// range that some lane does not see. A lane sees a key if it is not hidden and not ahead of the lane's query.
template <typename Scalar, typename F>
void for_each_hidden(const attention_inputs<Scalar>& in, const query_lanes<Scalar>& lanes, index_t first, index_t keys,
                     F&& f) {
  constexpr index_t vector = simd_width<Scalar>;
  const index_t L = lanes.padded();
  const bool masks = !in.key_mask.empty();
  if (!masks && first + keys <= lanes.fewest_keys()) return;
  Scalar seen[as_size(attention_lanes<Scalar>)];  // keys of this block that a lane sees
  for (index_t l = 0; l < L; ++l)
    seen[l] =
        l < lanes.count
            ? static_cast<Scalar>(std::clamp<index_t>(in.shape.seen(lanes.range, lanes.query(l)) - first, 0, keys))
            : Scalar(0);
  const simd<Scalar> none(Scalar(0));
  for (index_t j = 0; j < keys; ++j) {
    const bool hidden = in.is_hidden(lanes.range.first_key + first + j);
    if (!hidden && first + j < lanes.fewest_keys()) continue;
    const simd<Scalar> place(static_cast<Scalar>(j));
    for (index_t l = 0; l < L; l += vector) f(j * L + l, place < (hidden ? none : load(seen + l)));
  }
}

}  // namespace sluice::inline SLUICE_ISA::kernel
