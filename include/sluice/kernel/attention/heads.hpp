/// What attention reads: heads of queries, keys and values as they lie in the caller's matrices, and who sees whom.
///
///   element c of head h of token t lies at data[t row_stride + h head_stride + c]      q, k and v may share one matrix
///
/// Heads of queries may outnumber heads of keys, a whole number of times: which key head they share is key_sharing.
/// A range is a sequence of its own, with any numbers of queries and keys. In causal attention its queries are the
/// last of its positions: where there are fewer queries than keys, as in decoding, query i stands at position
/// keys - queries + i and sees the keys up to there. In any other, queries may be of one source and keys of another.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/types.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <type_traits>

namespace sluice::inline SLUICE_ISA {

/// Which key head the query heads share, G = heads / key_heads of them each.
enum class key_sharing {
  adjacent,  ///< head h reads key head h / G (grouped queries, as in Llama)
  repeated   ///< head h reads key head h % key_heads (keys laid down once more for every set of heads, as in JetMoE)
};

namespace kernel {

template <typename Scalar>
struct head_rows {
  Scalar* data = nullptr;
  index_t row_stride = 0;
  index_t head_stride = 0;

  Scalar* at(index_t row, index_t head) const noexcept { return data + row * row_stride + head * head_stride; }
  operator head_rows<const Scalar>() const noexcept requires(!std::is_const_v<Scalar>) {
    return {data, row_stride, head_stride};
  }
};

/// Queries and keys of one sequence: rows of q (and of the results), and rows of k and v.
struct attended_range {
  index_t first_query = 0;
  index_t queries = 0;
  index_t first_key = 0;
  index_t keys = 0;
};

struct attention_shape {
  index_t heads = 1;
  index_t key_heads = 1;
  index_t key_width = 64;    ///< of a head of q and k
  index_t value_width = 64;  ///< of a head of v and of the result
  double scale = 0;          ///< of scores; 0: 1 / sqrt(key_width)
  bool causal = true;
  key_sharing sharing = key_sharing::adjacent;

  /// Query heads of a key head.
  index_t shared() const noexcept { return heads / key_heads; }
  /// The i-th query head of a key head.
  index_t head(index_t key_head, index_t i) const noexcept {
    return sharing == key_sharing::adjacent ? key_head * shared() + i : i * key_heads + key_head;
  }
  double score_scale() const noexcept { return scale == 0 ? 1 / std::sqrt(static_cast<double>(key_width)) : scale; }
  /// How many of the range's keys query i sees, from the first on.
  index_t seen(const attended_range& r, index_t i) const noexcept {
    return causal ? std::clamp<index_t>(r.keys - r.queries + i + 1, 0, r.keys) : r.keys;
  }
};

/// Throws std::invalid_argument unless heads and widths are at least 1, heads a multiple of key_heads and scale >= 0.
inline void check_heads(const attention_shape& s) {
  if (s.heads < 1 || s.key_heads < 1 || s.heads % s.key_heads != 0 || s.key_width < 1 || s.value_width < 1)
    throw_invalid("attention needs heads >= 1, a multiple of key_heads >= 1, and widths >= 1, not ", s.heads,
                  " heads, ", s.key_heads, " key heads, and widths ", s.key_width, " and ", s.value_width);
  if (!is_at_least(s.scale, 0.0) || !is_finite(s.scale))
    throw_invalid("attention needs a finite scale >= 0, not ", s.scale);
}

template <typename Scalar>
struct attention_inputs {
  attention_shape shape{};
  std::span<const attended_range> sequences{};
  head_rows<const Scalar> q{}, k{}, v{};
  /// One entry a row of k, 0 = seen by nobody; empty: all are seen. What is hidden must still be finite numbers.
  std::span<const std::uint8_t> key_mask{};

  bool is_hidden(index_t key_row) const noexcept { return !key_mask.empty() && key_mask[as_size(key_row)] == 0; }
};

}  // namespace kernel

}  // namespace sluice::inline SLUICE_ISA
