/// Keys and values of tokens that were attended before, so that a sequence can be continued token by token.
///
///   key_value_cache<float> cache{attention, sequences, positions};
///   attention.forward_cached(prompts, y, cache, ws, {.sequences = borders});        // any number of tokens a sequence
///   attention.forward_cached(next, y, cache, ws, {.sequences = one_each});          // ... and one more of each
///   cache.truncate(s, 12); cache.clear();                                      // back to 12 positions, and to the beginning
///
/// A cache has a place for `positions` tokens of every sequence. Hidden tokens take a position, as they do in a batch,
/// and are seen by nobody. It belongs to one layer; whoever decodes a model has one a layer.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/error.hpp>
#include <sluice/core/types.hpp>
#include <sluice/kernel/attention/heads.hpp>

#include <algorithm>
#include <cstdint>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class key_value_cache {
public:
  /// For a layer with attention heads. Throws std::invalid_argument unless sequences and positions are at least 1.
  template <typename Layer>
    requires requires(const Layer& layer) { layer.attention_shape(); }
  key_value_cache(const Layer& layer, index_t sequences, index_t positions)
      : key_value_cache(layer.attention_shape(), sequences, positions) {}
  key_value_cache(const kernel::attention_shape& shape, index_t sequences, index_t positions)
      : key_heads_(shape.key_heads),
        key_width_(shape.key_width),
        value_width_(shape.value_width),
        positions_(positions) {
    if (sequences < 1 || positions < 1)
      throw_invalid("key_value_cache needs sequences and positions >= 1, not ", sequences, " and ", positions);
    kernel::check_heads(shape);
    const index_t rows = checked_product(sequences, positions);
    keys_.set_zero(rows, key_heads_ * key_width_);
    values_.set_zero(rows, key_heads_ * value_width_);
    seen_.assign(rows, 0);
    lengths_.assign(sequences, 0);
  }

  index_t sequences() const noexcept { return lengths_.size(); }
  /// Places of a sequence.
  index_t positions() const noexcept { return positions_; }
  /// Positions of a sequence that are taken: the next token's position.
  index_t length(index_t sequence) const noexcept { return lengths_[sequence]; }
  index_t longest() const noexcept { return *std::max_element(lengths_.begin(), lengths_.end()); }

  void clear() noexcept { lengths_.fill(0); }
  /// Forgets what is past the first `length` positions of a sequence. Throws std::invalid_argument if it has fewer.
  void truncate(index_t sequence, index_t length) {
    if (sequence < 0 || sequence >= sequences() || length < 0 || length > lengths_[sequence])
      throw_invalid("key_value_cache.truncate: sequence ", sequence, " of ", sequences(), " cannot be cut to ", length,
                    " positions", sequence >= 0 && sequence < sequences() ? "; it is shorter" : "");
    lengths_[sequence] = length;
  }

  /// Throws std::invalid_argument if the cache is another layer's, or has no room for so many tokens of a sequence.
  void check_room(const kernel::attention_shape& shape, index_t sequence, index_t tokens) const {
    if (shape.key_heads != key_heads_ || shape.key_width != key_width_ || shape.value_width != value_width_)
      throw_invalid("the key_value_cache holds ", key_heads_, " heads of keys ", key_width_, " and values ",
                    value_width_, " wide; the layer has ", shape.key_heads, ", ", shape.key_width, " and ",
                    shape.value_width);
    if (tokens > positions_ - lengths_[sequence])
      throw_invalid("the key_value_cache is full: sequence ", sequence, " has ", lengths_[sequence], " of ", positions_,
                    " positions and should get ", tokens, " more");
  }

  /// For layers: where position p of a sequence lies among the rows, the rows themselves, and what counts.
  index_t row(index_t sequence, index_t position) const noexcept { return sequence * positions_ + position; }
  kernel::head_rows<Scalar> keys() noexcept { return {keys_.data(), keys_.cols(), key_width_}; }
  kernel::head_rows<Scalar> values() noexcept { return {values_.data(), values_.cols(), value_width_}; }
  void set_seen(index_t row, bool seen) noexcept { seen_[row] = seen; }
  std::span<const std::uint8_t> seen() const noexcept { return seen_.span(); }
  void advance(index_t sequence, index_t tokens) noexcept { lengths_[sequence] += tokens; }

private:
  index_t key_heads_, key_width_, value_width_, positions_;
  matrix_buffer<Scalar> keys_, values_;
  buffer<std::uint8_t> seen_;
  buffer<index_t> lengths_;
};

}  // namespace sluice::inline SLUICE_ISA
