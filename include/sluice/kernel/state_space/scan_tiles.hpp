/// What a selective scan reads and how its tasks hold it: blocks of channels by blocks of tokens, in tiles.
///
///   rates A [I,N] = -exp(log_decay)   steps d [T,I] >= 0   x [T,I]   input weights B [T,N]   output weights C [T,N]
///   skip D [I]
///
/// A task has `scan_channels` channels of a sequence, whose states lie state by state, [N][scan_channels], channels in
/// lanes: no sum runs across lanes but those over channels in backward. It takes `scan_tokens` tokens at a time into
/// tiles [tokens][scan_channels], without those that are hidden; channels that are not there are zeros and stay zeros.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/context.hpp>
#include <sluice/kernel/attention/exponential.hpp>
#include <sluice/kernel/scratch_tasks.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <numbers>
#include <span>
#include <type_traits>

namespace sluice::inline SLUICE_ISA::kernel {

inline constexpr index_t scan_channels = 64;
inline constexpr index_t scan_tokens = 32;

/// Rows of a matrix of the caller, or of some of its columns.
template <typename Scalar>
struct scan_rows {
  Scalar* data = nullptr;
  index_t stride = 0;

  Scalar* row(index_t t) const noexcept { return data + t * stride; }
  operator scan_rows<const Scalar>() const noexcept requires(!std::is_const_v<Scalar>) { return {data, stride}; }
};

template <typename Scalar>
struct scan_inputs {
  index_t channels = 0;  ///< I
  index_t states = 0;    ///< N
  std::span<const token_range> sequences{};
  scan_rows<const Scalar> steps{}, x{};        ///< [T,I]
  scan_rows<const Scalar> into{}, out_of{};    ///< B and C [T,N]
  const Scalar* log_decay = nullptr;           ///< [I,N]
  const Scalar* skip = nullptr;                ///< [I]
  std::span<const std::uint8_t> token_mask{};  ///< [T], 0: hidden. Empty: nobody is

  index_t blocks() const noexcept { return (channels + scan_channels - 1) / scan_channels; }
  /// Numbers of the states of a block.
  index_t block_states() const noexcept { return states * scan_channels; }
  index_t tokens() const noexcept { return sequences.empty() ? 0 : sequences.back().end; }
};

/// What scans work in: one a workspace or tape.
template <typename Scalar>
struct scan_memory {
  matrix_buffer<Scalar> rates;    ///< [blocks][N][64] times log2 e: powers of two are then exponentials
  matrix_buffer<Scalar> scratch;  ///< a row a thread
  matrix_buffer<Scalar> kept;     ///< training: states [blocks][N][64] before every chunk but the first of a sequence
  matrix_buffer<Scalar> shares;   ///< backward: what a block of channels gives to dB and dC, [blocks T, 2 N]
};

namespace detail {

template <typename Scalar>
void prepare_rates(const scan_inputs<Scalar>& in, scan_memory<Scalar>& memory, const executor_ref& executor) {
  memory.rates.resize(in.blocks(), in.block_states());
  executor.parallel_blocks(in.blocks(), 1, in.block_states(), [&](index_t b, index_t) {
    Scalar* const rates = memory.rates.row(b);
    std::fill_n(rates, in.block_states(), Scalar(0));
    const index_t first = b * scan_channels, count = (std::min)(scan_channels, in.channels - first);
    for (index_t c = 0; c < count; ++c)
      for (index_t n = 0; n < in.states; ++n) rates[n * scan_channels + c] = in.log_decay[(first + c) * in.states + n];
    transform(
        in.block_states(), [](const auto& v) { return exp(v) * simd<Scalar>(-std::numbers::log2e_v<Scalar>); }, rates,
        rates);
  });
}

template <typename Scalar>
class scan_block {
public:
  static constexpr index_t tile = scan_tokens * scan_channels;

  scan_block(const scan_inputs<Scalar>& in, index_t block, const scan_memory<Scalar>& memory)
      : in_(in),
        first_(block * scan_channels),
        count_((std::min)(scan_channels, in.channels - block * scan_channels)),
        rates_(memory.rates.row(block)) {
    std::copy_n(in.skip + first_, count_, skip_);
  }

  index_t first() const noexcept { return first_; }
  index_t count() const noexcept { return count_; }
  const Scalar* rates() const noexcept { return rates_; }
  const Scalar* skip() const noexcept { return skip_; }

  /// Takes up to scan_tokens tokens from `first` on; those that are not hidden are then the chunk's.
  void begin_chunk(index_t first, index_t end) {
    tokens_ = 0;
    chunk_ = {first, (std::min)(first + scan_tokens, end)};
    for (index_t t = chunk_.begin; t < chunk_.end; ++t)
      if (!is_hidden(t)) token_[as_size(tokens_++)] = t;
  }
  index_t tokens() const noexcept { return tokens_; }
  index_t token(index_t i) const noexcept { return token_[as_size(i)]; }

  void load(const scan_rows<const Scalar>& from, Scalar* to) const {
    for (index_t i = 0; i < tokens_; ++i) {
      std::copy_n(from.row(token(i)) + first_, count_, to + i * scan_channels);
      std::fill(to + i * scan_channels + count_, to + (i + 1) * scan_channels, Scalar(0));
    }
  }
  /// Hidden tokens of the chunk get zeros.
  void store(const Scalar* from, const scan_rows<Scalar>& to) const {
    for (index_t t = chunk_.begin; t < chunk_.end; ++t)
      if (is_hidden(t)) std::fill_n(to.row(t) + first_, count_, Scalar(0));
    for (index_t i = 0; i < tokens_; ++i) std::copy_n(from + i * scan_channels, count_, to.row(token(i)) + first_);
  }
  template <typename F>
  void for_each_hidden(F&& f) const {
    for (index_t t = chunk_.begin; t < chunk_.end; ++t)
      if (is_hidden(t)) f(t);
  }

private:
  bool is_hidden(index_t t) const noexcept { return !in_.token_mask.empty() && in_.token_mask[as_size(t)] == 0; }

  const scan_inputs<Scalar>& in_;
  index_t first_, count_;
  const Scalar* rates_;
  alignas(64) Scalar skip_[as_size(scan_channels)] = {};
  token_range chunk_{};
  index_t tokens_ = 0;
  std::array<index_t, as_size(scan_tokens)> token_{};
};

/// Where a chunk that begins at this token, not a sequence's first, is kept: chunks of a sequence begin scan_tokens
/// apart, those of two sequences more.
inline index_t kept_chunk(index_t begin) { return begin / scan_tokens - 1; }

/// Vectors of a block that go through the states together: their sums stay in registers.
template <typename Scalar>
inline constexpr index_t scan_vectors = (std::min<index_t>)(4, scan_channels / simd_width<Scalar>);

/// h = 2^(d rate) h + (d x) B for the channels of a block, and where y is wanted y = C h + D x.
template <bool Out, typename Scalar>
void scan_token(index_t states, const Scalar* rates, const Scalar* before, Scalar* after, const Scalar* step,
                const Scalar* x, const Scalar* into, const Scalar* out_of, const Scalar* skip, Scalar* y) noexcept {
  constexpr index_t width = simd_width<Scalar>, V = scan_vectors<Scalar>;
  for (index_t first = 0; first < scan_channels; first += V * width) {
    simd<Scalar> d[as_size(V)], moved[as_size(V)], sum[as_size(V)];
    SLUICE_UNROLL for (index_t v = 0; v < V; ++v) {
      const index_t c = first + v * width;
      const simd<Scalar> channel = kernel::load(x + c);
      d[v] = kernel::load(step + c);
      moved[v] = d[v] * channel;
      if constexpr (Out) sum[v] = kernel::load(skip + c) * channel;
    }
    for (index_t n = 0; n < states; ++n) {
      const simd<Scalar> b(into[n]), o(Out ? out_of[n] : Scalar(0));
      SLUICE_UNROLL for (index_t v = 0; v < V; ++v) {
        const index_t place = n * scan_channels + first + v * width;
        const simd<Scalar> decay = power_of_two<Scalar>(d[v] * kernel::load(rates + place));
        const simd<Scalar> state = multiply_add<Scalar>(decay, kernel::load(before + place), moved[v] * b);
        kernel::store<Scalar>(after + place, state);
        if constexpr (Out) sum[v] = multiply_add<Scalar>(o, state, sum[v]);
      }
    }
    if constexpr (Out)
      SLUICE_UNROLL for (index_t v = 0; v < V; ++v) kernel::store<Scalar>(y + first + v * width, sum[v]);
  }
}

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA::kernel
