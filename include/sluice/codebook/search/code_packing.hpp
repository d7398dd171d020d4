/// Codes of few bits, laid down one after the other in bytes.
///
///   ids [T,M], bits[m] for column m  ->  bytes [T, ceil(sum of bits / 8)]
///
/// The first column lies in the lowest bits of the first byte, and numbers go on across bytes, low bits first; what is
/// left of the last byte is zero. That is how faiss packs product and additive codes. There is no room for no_code:
/// what has no code cannot be packed. T = 0 is fine.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/error.hpp>

#include <algorithm>
#include <cstdint>
#include <span>

namespace sluice::inline SLUICE_ISA {

class code_packing {
public:
  /// As many bits for every column. Throws std::invalid_argument unless there is a column, of 1 to 32 bits.
  code_packing(index_t columns, index_t bits) {
    if (columns < 1) throw_invalid("packed codes need a column, not ", columns);
    bits_.assign(columns, bits);
    check_call();
  }
  /// Bits for every column of its own.
  explicit code_packing(std::span<const index_t> bits) {
    for (const index_t b : bits) bits_.push_back(b);
    check_call();
  }

  index_t columns() const noexcept { return bits_.size(); }
  index_t bits(index_t column) const noexcept { return bits_[column]; }
  /// Of one token.
  index_t bytes() const noexcept { return (total_ + 7) / 8; }

  /// bytes [T, bytes()] of ids [T,M]. Throws std::invalid_argument if shapes or a number do not fit.
  void pack(tokens_in<index_t> ids, tokens_out<std::uint8_t> packed) const {
    check_shapes(ids.rows(), ids.cols(), packed.rows(), packed.cols());
    for (index_t t = 0; t < ids.rows(); ++t) {
      std::uint8_t* out = packed.data() + t * packed.outerStride();
      std::uint64_t pending = 0;
      index_t held = 0;
      for (index_t m = 0; m < columns(); ++m) {
        if (ids(t, m) < 0 || ids(t, m) >> bits_[m] != 0)
          throw_invalid("token ", t, " has the code ", ids(t, m), " in column ", m, ", which has ", bits_[m], " bits");
        pending |= static_cast<std::uint64_t>(ids(t, m)) << held;
        for (held += bits_[m]; held >= 8; held -= 8, pending >>= 8) *out++ = static_cast<std::uint8_t>(pending & 0xff);
      }
      if (held > 0) *out = static_cast<std::uint8_t>(pending);
    }
  }

  /// ids [T,M] of bytes [T, bytes()]. Throws std::invalid_argument if shapes do not fit.
  void unpack(tokens_in<std::uint8_t> packed, tokens_out<index_t> ids) const {
    check_shapes(ids.rows(), ids.cols(), packed.rows(), packed.cols());
    for (index_t t = 0; t < ids.rows(); ++t) {
      const std::uint8_t* in = packed.data() + t * packed.outerStride();
      std::uint64_t pending = 0;
      index_t held = 0;
      for (index_t m = 0; m < columns(); ++m) {
        for (; held < bits_[m]; held += 8) pending |= std::uint64_t{*in++} << held;
        ids(t, m) = static_cast<index_t>(pending & ((std::uint64_t{1} << bits_[m]) - 1));
        pending >>= bits_[m];
        held -= bits_[m];
      }
    }
  }

private:
  void check_call() {
    if (bits_.empty()) throw_invalid("packed codes need a column, not 0");
    for (const index_t b : bits_) {
      if (b < 1 || b > 32) throw_invalid("a packed code has 1 to 32 bits, not ", b);
      total_ += b;
    }
  }
  void check_shapes(index_t tokens, index_t width, index_t packed_tokens, index_t packed_width) const {
    if (tokens != packed_tokens || width != columns() || packed_width != bytes())
      throw_invalid("ids [T, ", columns(), "] pack into [T, ", bytes(), "] bytes, not [", tokens, ", ", width,
                    "] into [", packed_tokens, ", ", packed_width, "]");
  }

  buffer<index_t> bits_;
  index_t total_ = 0;
};

}  // namespace sluice::inline SLUICE_ISA
