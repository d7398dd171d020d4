/// The selective scan of a state-space model: every channel of a token moves N states, by weights of that token.
///
///   h_t = exp(d_t A) h_(t-1) + d_t x_t B_t                 h [I,N], zero before a sequence, or where a cache left it
///   y_t = sum over n of C_t[n] h_t[.,n] + D x_t                                  (kernel/state_space/scan_tiles.hpp)
///
/// A task is a block of channels of a sequence and goes through its tokens in order. Hidden tokens are not there:
/// states pass over them unchanged, and they get zeros. What comes of a token does not depend on where its sequence was
/// cut: continued token by token it has the bits of the whole. For training the states before every 32 tokens are kept,
/// I N / 32 numbers a token; no matrix [T,I,N] ever lies in memory. Bits are equal for any number of threads; a warm
/// call allocates nothing. Gu and Dao 2023, arXiv:2312.00752.
#pragma once

#include <sluice/kernel/state_space/scan_tiles.hpp>

namespace sluice::inline SLUICE_ISA::kernel {

/// y [T,I] is overwritten. states [sequences][blocks][N][scan_channels]: where sequences go on from and where they end;
/// null: they begin with zeros. keep: for selective_scan_backward with the same memory.
template <typename Scalar>
void selective_scan(const scan_inputs<Scalar>& in, const scan_rows<Scalar>& y, Scalar* states, bool keep,
                    scan_memory<Scalar>& memory, const executor_ref& executor) {
  using block = detail::scan_block<Scalar>;
  const index_t blocks = in.blocks(), sequences = static_cast<index_t>(in.sequences.size());
  const index_t of_block = in.block_states();
  detail::prepare_rates(in, memory, executor);
  if (keep) memory.kept.resize(in.tokens() / scan_tokens, blocks * of_block);
  run_scratch_tasks(
      sequences * blocks, of_block + 3 * block::tile, in.tokens() * in.channels * in.states, memory.scratch, executor,
      [&](index_t task, Scalar* scratch) {
        const index_t s = task / blocks, b = task % blocks;
        const token_range& sequence = in.sequences[as_size(s)];
        block channels(in, b, memory);
        Scalar* const state = states == nullptr ? scratch : states + (s * blocks + b) * of_block;
        Scalar *const steps = scratch + of_block, *const x = steps + block::tile, *const out = x + block::tile;
        if (states == nullptr) std::fill_n(state, of_block, Scalar(0));
        for (index_t first = sequence.begin; first < sequence.end; first += scan_tokens) {
          if (keep && first > sequence.begin)
            std::copy_n(state, of_block, memory.kept.row(detail::kept_chunk(first)) + b * of_block);
          channels.begin_chunk(first, sequence.end);
          channels.load(in.steps, steps);
          channels.load(in.x, x);
          for (index_t i = 0; i < channels.tokens(); ++i) {
            const index_t row = i * scan_channels, t = channels.token(i);
            detail::scan_token<true>(in.states, channels.rates(), state, state, steps + row, x + row, in.into.row(t),
                                     in.out_of.row(t), channels.skip(), out + row);
          }
          channels.store(out, y);
        }
      });
}

}  // namespace sluice::inline SLUICE_ISA::kernel
