/// The gradients of a selective scan (kernel/state_space/scan_forward.hpp), from the states that forward kept.
///
///   g_t = C_t dy_t + exp(d_(t+1) A) g_(t+1)                    what y_t and everything after it asks of h_t
///   dx_t = d_t sum over n of g_t B_t + D dy_t           dd_t = sum over n of g_t (A exp(d_t A) h_(t-1) + x_t B_t)
///   dB_t = sum over channels of g_t d_t x_t             dC_t = sum over channels of dy_t h_t
///   dlog_decay += A sum over t of g_t d_t exp(d_t A) h_(t-1)                      dD += sum over t of dy_t x_t
///
/// A task is a block of channels: it goes through all sequences, and through their tokens from behind, 32 at a time,
/// whose states it finds anew from the ones before them. Sums over channels are made block by block and added in order.
/// Memory: N / 32 numbers a token and channel of what blocks give to dB and dC, and 35 N x 64 numbers a thread.
#pragma once

#include <sluice/kernel/state_space/scan_forward.hpp>

namespace sluice::inline SLUICE_ISA::kernel {

template <typename Scalar>
struct scan_gradients {
  scan_rows<const Scalar> dy{};          ///< [T,I]
  scan_rows<Scalar> dsteps{}, dx{};      ///< [T,I], overwritten; zero where a token is hidden
  scan_rows<Scalar> dinto{}, dout_of{};  ///< [T,N], overwritten
  Scalar* dlog_decay = nullptr;          ///< [I,N], added to
  Scalar* dskip = nullptr;               ///< [I], added to
};

namespace detail {

/// A token of a block of channels on the way back. `shares` gets what the block gives to dB and dC, N vectors each.
template <typename Scalar>
void scan_token_backward(index_t states, const Scalar* rates, const Scalar* before, const Scalar* after,
                         const Scalar* step, const Scalar* x, const Scalar* into, const Scalar* out_of,
                         const Scalar* skip, const Scalar* dy, Scalar* asked, Scalar* drates, Scalar* dskip,
                         Scalar* dstep, Scalar* dx, Scalar* shares) noexcept {
  constexpr index_t width = simd_width<Scalar>, V = scan_vectors<Scalar>;
  const simd<Scalar> zero(Scalar(0)), per_rate(std::numbers::ln2_v<Scalar>);
  for (index_t first = 0; first < scan_channels; first += V * width) {
    simd<Scalar> d[as_size(V)], moved[as_size(V)], upstream[as_size(V)], by_rate[as_size(V)], by_input[as_size(V)];
    SLUICE_UNROLL for (index_t v = 0; v < V; ++v) {
      const index_t c = first + v * width;
      d[v] = kernel::load(step + c);
      moved[v] = d[v] * kernel::load(x + c);
      upstream[v] = kernel::load(dy + c);
      by_rate[v] = by_input[v] = zero;
    }
    for (index_t n = 0; n < states; ++n) {
      const simd<Scalar> b(into[n]), o(out_of[n]);
      simd<Scalar> dinto = first == 0 ? zero : kernel::load(shares + n * width);
      simd<Scalar> dout = first == 0 ? zero : kernel::load(shares + (states + n) * width);
      SLUICE_UNROLL for (index_t v = 0; v < V; ++v) {
        const index_t place = n * scan_channels + first + v * width;
        const simd<Scalar> rate = kernel::load(rates + place);
        const simd<Scalar> decay = power_of_two<Scalar>(d[v] * rate);
        const simd<Scalar> g = multiply_add<Scalar>(o, upstream[v], kernel::load(asked + place));
        dinto = multiply_add<Scalar>(g, moved[v], dinto);
        dout = multiply_add<Scalar>(upstream[v], kernel::load(after + place), dout);
        const simd<Scalar> passed = decay * g, along = passed * kernel::load(before + place);
        kernel::store<Scalar>(asked + place, passed);
        kernel::store<Scalar>(drates + place, multiply_add<Scalar>(along, d[v], kernel::load(drates + place)));
        by_rate[v] = multiply_add<Scalar>(along, rate, by_rate[v]);
        by_input[v] = multiply_add<Scalar>(g, b, by_input[v]);
      }
      kernel::store<Scalar>(shares + n * width, dinto);
      kernel::store<Scalar>(shares + (states + n) * width, dout);
    }
    SLUICE_UNROLL for (index_t v = 0; v < V; ++v) {
      const index_t c = first + v * width;
      const simd<Scalar> channel = kernel::load(x + c);
      kernel::store<Scalar>(dstep + c, multiply_add<Scalar>(channel, by_input[v], per_rate * by_rate[v]));
      kernel::store<Scalar>(dx + c, multiply_add<Scalar>(d[v], by_input[v], kernel::load(skip + c) * upstream[v]));
      kernel::store<Scalar>(dskip + c, multiply_add<Scalar>(upstream[v], channel, kernel::load(dskip + c)));
    }
  }
}

/// sums[i] = the lanes of vectors[i] added, for so many vectors in a row.
template <typename Scalar>
void add_lanes_of(const Scalar* vectors, index_t count, Scalar* sums) noexcept {
  constexpr index_t width = simd_width<Scalar>;
  for (index_t first = 0; first < count; first += width) {
    simd<Scalar> some[as_size(width)];
    for (index_t i = 0; i < width; ++i)
      some[i] = first + i < count ? kernel::load(vectors + (first + i) * width) : simd<Scalar>(Scalar(0));
    const simd<Scalar> added = sums_of_lanes<Scalar>(some);
    if (first + width <= count)
      kernel::store<Scalar>(sums + first, added);
    else
      store_part<Scalar>(sums + first, added, count - first);
  }
}

template <typename Scalar>
class scan_backward_task {
  using block = scan_block<Scalar>;

public:
  static index_t scratch(const scan_inputs<Scalar>& in) {
    return (scan_tokens + 3) * in.block_states() + 5 * block::tile + 2 * in.states * simd_width<Scalar> + scan_channels;
  }

  scan_backward_task(const scan_inputs<Scalar>& in, index_t b, Scalar* scratch, scan_memory<Scalar>& memory)
      : in_(in), b_(b), memory_(memory), channels_(in, b, memory) {
    const index_t N = in.block_states();
    asked_ = scratch;
    drates_ = asked_ + N;
    states_ = drates_ + N;
    steps_ = states_ + (scan_tokens + 1) * N;
    x_ = steps_ + block::tile;
    dy_ = x_ + block::tile;
    dsteps_ = dy_ + block::tile;
    dx_ = dsteps_ + block::tile;
    shares_ = dx_ + block::tile;
    dskip_ = shares_ + 2 * in.states * simd_width<Scalar>;
  }

  void run(const scan_gradients<Scalar>& to) {
    std::fill_n(drates_, in_.block_states(), Scalar(0));
    std::fill_n(dskip_, scan_channels, Scalar(0));
    for (const token_range& sequence : in_.sequences) {
      std::fill_n(asked_, in_.block_states(), Scalar(0));
      for (index_t chunk = (sequence.size() + scan_tokens - 1) / scan_tokens; chunk-- > 0;) {
        const index_t first = sequence.begin + chunk * scan_tokens;
        if (chunk == 0)
          std::fill_n(states_, in_.block_states(), Scalar(0));
        else
          std::copy_n(memory_.kept.row(kept_chunk(first)) + b_ * in_.block_states(), in_.block_states(), states_);
        channels_.begin_chunk(first, sequence.end);
        run_chunk(to);
      }
    }
    const Scalar* const rates = channels_.rates();
    for (index_t c = 0; c < channels_.count(); ++c) {
      to.dskip[channels_.first() + c] += dskip_[c];
      for (index_t n = 0; n < in_.states; ++n) {
        const index_t place = n * scan_channels + c;
        to.dlog_decay[(channels_.first() + c) * in_.states + n] +=
            drates_[place] * rates[place] * std::numbers::ln2_v<Scalar>;
      }
    }
  }

private:
  void run_chunk(const scan_gradients<Scalar>& to) {
    const index_t N = in_.block_states();
    channels_.load(in_.steps, steps_);
    channels_.load(in_.x, x_);
    channels_.load(to.dy, dy_);
    for (index_t i = 0; i < channels_.tokens(); ++i) {
      const index_t row = i * scan_channels;
      scan_token<false, Scalar>(in_.states, channels_.rates(), states_ + i * N, states_ + (i + 1) * N, steps_ + row,
                                x_ + row, in_.into.row(channels_.token(i)), nullptr, nullptr, nullptr);
    }
    const auto share = [&](index_t t) { return memory_.shares.row(b_ * in_.tokens() + t); };
    for (index_t i = channels_.tokens() - 1; i >= 0; --i) {
      const index_t row = i * scan_channels, t = channels_.token(i);
      scan_token_backward(in_.states, channels_.rates(), states_ + i * N, states_ + (i + 1) * N, steps_ + row, x_ + row,
                          in_.into.row(t), in_.out_of.row(t), channels_.skip(), dy_ + row, asked_, drates_, dskip_,
                          dsteps_ + row, dx_ + row, shares_);
      add_lanes_of(shares_, 2 * in_.states, share(t));
    }
    channels_.for_each_hidden([&](index_t t) { std::fill_n(share(t), 2 * in_.states, Scalar(0)); });
    channels_.store(dsteps_, to.dsteps);
    channels_.store(dx_, to.dx);
  }

  const scan_inputs<Scalar>& in_;
  index_t b_;
  scan_memory<Scalar>& memory_;
  block channels_;
  Scalar *asked_, *drates_, *states_, *steps_, *x_, *dy_, *dsteps_, *dx_, *shares_, *dskip_;
};

}  // namespace detail

/// For the last selective_scan with this memory that kept its states, and the same inputs.
template <typename Scalar>
void selective_scan_backward(const scan_inputs<Scalar>& in, const scan_gradients<Scalar>& to,
                             scan_memory<Scalar>& memory, const executor_ref& executor) {
  using task_type = detail::scan_backward_task<Scalar>;
  const index_t T = in.tokens(), blocks = in.blocks(), N = in.states;
  memory.shares.resize(blocks * T, 2 * N);
  run_scratch_tasks(blocks, task_type::scratch(in), 3 * T * in.channels * N, memory.scratch, executor,
                    [&](index_t b, Scalar* scratch) { task_type(in, b, scratch, memory).run(to); });
  executor.parallel_each(T, 2 * blocks * N, [&](index_t t) {
    std::fill_n(to.dinto.row(t), N, Scalar(0));
    std::fill_n(to.dout_of.row(t), N, Scalar(0));
    for (index_t b = 0; b < blocks; ++b) {
      const Scalar* const share = memory.shares.row(b * T + t);
      add_scaled(Scalar(1), share, to.dinto.row(t), N);
      add_scaled(Scalar(1), share + N, to.dout_of.row(t), N);
    }
  });
}

}  // namespace sluice::inline SLUICE_ISA::kernel
