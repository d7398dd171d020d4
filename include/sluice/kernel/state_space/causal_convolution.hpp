/// A short causal convolution along the tokens of a sequence, every channel on its own.
///
///   y_t = b + sum over k of w[.,k] x_(t-W+1+k)        x [T,I]   w [I,W]   b [I]   y [T,I]
///   dx_t = sum over k of w[.,k] dy_(t+W-1-k)          dw[.,k] += sum over t of dy_t x_(t-W+1+k)      db += sum of dy_t
///
/// Rows before a sequence are zeros, or those of `before`, W - 1 a sequence, where a cache has kept them. Sums go from
/// the first tap to the last, whatever lies there: a token has the same bits in a sequence that was cut. A task is a
/// block of channels, forward of one sequence. Bits are equal for any number of threads; only turn_taps allocates.
#pragma once

#include <sluice/kernel/state_space/scan_tiles.hpp>

namespace sluice::inline SLUICE_ISA::kernel {

/// w [I,W] turned, a tap after the other: what the loops read.
template <typename Scalar>
void turn_taps(const Scalar* weight, index_t channels, index_t width, matrix_buffer<Scalar>& taps) {
  taps.resize(width, channels);
  for (index_t c = 0; c < channels; ++c)
    for (index_t k = 0; k < width; ++k) taps(k, c) = weight[c * width + k];
}

namespace detail {

inline constexpr index_t convolution_channels = 64;

/// f(first channel, load, store) for every vector of channels from begin to end.
template <typename Scalar, typename F>
void for_channel_vectors(index_t begin, index_t end, F&& f) {
  constexpr index_t width = simd_width<Scalar>;
  for (index_t c = begin; c < end; c += width) {
    const index_t count = end - c;
    if (count >= width)
      f(
          c, [](const Scalar* from) { return kernel::load(from); },
          [](Scalar* to, const simd<Scalar>& v) { kernel::store<Scalar>(to, v); });
    else
      f(
          c, [count](const Scalar* from) { return load_part(from, count, Scalar(0)); },
          [count](Scalar* to, const simd<Scalar>& v) { store_part<Scalar>(to, v, count); });
  }
}

/// f(begin, end, other) for all blocks of channels with each of the others.
template <typename F>
void for_channel_blocks(index_t channels, index_t others, index_t work, const executor_ref& executor, F&& f) {
  const index_t blocks = (channels + convolution_channels - 1) / convolution_channels;
  executor.for_work(work).parallel_for(blocks * others, [&](index_t task) {
    const index_t begin = task % blocks * convolution_channels;
    f(begin, (std::min)(begin + convolution_channels, channels), task / blocks);
  });
}

}  // namespace detail

template <typename Scalar>
void causal_convolution(std::span<const token_range> sequences, const scan_rows<const Scalar>& x,
                        const matrix_buffer<Scalar>& taps, const Scalar* bias, const Scalar* before,
                        const scan_rows<Scalar>& y, const executor_ref& executor) {
  const index_t channels = taps.cols(), width = taps.rows(), past = width - 1;
  const index_t tokens = sequences.empty() ? 0 : sequences.back().end;
  detail::for_channel_blocks(
      channels, static_cast<index_t>(sequences.size()), tokens * channels * width / 4, executor,
      [&](index_t begin, index_t end, index_t s) {
        const token_range& sequence = sequences[as_size(s)];
        for (index_t t = sequence.begin; t < sequence.end; ++t)
          detail::for_channel_vectors<Scalar>(begin, end, [&](index_t c, const auto& load_from, const auto& store_to) {
            simd<Scalar> sum = load_from(bias + c);
            for (index_t k = 0; k < width; ++k) {
              const index_t from = t - past + k;
              simd<Scalar> v(Scalar(0));
              if (from >= sequence.begin)
                v = load_from(x.row(from) + c);
              else if (before != nullptr)
                v = load_from(before + (s * past + past + from - sequence.begin) * channels + c);
              sum = multiply_add<Scalar>(load_from(taps.row(k) + c), v, sum);
            }
            store_to(y.row(t) + c, sum);
          });
      });
}

/// dx [T,I] is overwritten; dweight [I,W] and dbias [I] are added to.
template <typename Scalar>
void causal_convolution_backward(std::span<const token_range> sequences, const scan_rows<const Scalar>& x,
                                 const matrix_buffer<Scalar>& taps, const scan_rows<const Scalar>& dy,
                                 const scan_rows<Scalar>& dx, Scalar* dweight, Scalar* dbias,
                                 const executor_ref& executor) {
  const index_t channels = taps.cols(), width = taps.rows(), past = width - 1;
  const index_t tokens = sequences.empty() ? 0 : sequences.back().end;
  detail::for_channel_blocks(
      channels, 1, tokens * channels * width / 2, executor, [&](index_t begin, index_t end, index_t) {
        for (const token_range& sequence : sequences)
          for (index_t t = sequence.begin; t < sequence.end; ++t)
            detail::for_channel_vectors<Scalar>(
                begin, end, [&](index_t c, const auto& load_from, const auto& store_to) {
                  simd<Scalar> sum(Scalar(0));
                  for (index_t k = width; k-- > 0 && t + past - k < sequence.end;)
                    sum = multiply_add<Scalar>(load_from(taps.row(k) + c), load_from(dy.row(t + past - k) + c), sum);
                  store_to(dx.row(t) + c, sum);
                });
        alignas(64) Scalar sums[as_size(detail::convolution_channels)];
        for (index_t k = -1; k < width; ++k) {  // -1: the bias
          std::fill_n(sums, end - begin, Scalar(0));
          for (const token_range& sequence : sequences)
            for (index_t t = (std::max)(sequence.begin, k < 0 ? index_t(0) : sequence.begin + past - k);
                 t < sequence.end; ++t)
              detail::for_channel_vectors<Scalar>(
                  begin, end, [&](index_t c, const auto& load_from, const auto& store_to) {
                    Scalar* const place = sums + (c - begin);
                    const simd<Scalar> v = load_from(dy.row(t) + c), sum = load_from(place);
                    store_to(place, k < 0 ? sum + v : multiply_add<Scalar>(v, load_from(x.row(t - past + k) + c), sum));
                  });
          for (index_t c = begin; c < end; ++c) (k < 0 ? dbias[c] : dweight[c * width + k]) += sums[c - begin];
        }
      });
}

}  // namespace sluice::inline SLUICE_ISA::kernel
