/// Where the states of sequences stand, so that a state-space layer continues them token by token.
///
///   state_space_cache<float> cache{mixer, sequences};
///   mixer.forward_cached(prompts, y, cache, ws, {.sequences = borders});            // any number of tokens a sequence
///   mixer.forward_cached(next, y, cache, ws, {.sequences = one_each});              // ... and one more of each
///   cache.clear(s);   cache.clear();                              // one sequence, or all, back to the beginning
///
/// It has I N + (W - 1) I numbers a sequence, however long that is, so it cannot go back: keep a copy to return to. It
/// belongs to one layer; whoever decodes a model has one a layer.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/error.hpp>
#include <sluice/kernel/state_space/scan_tiles.hpp>

#include <algorithm>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class state_space_cache {
public:
  /// Throws std::invalid_argument unless there is a sequence.
  template <typename Mixer>
    requires requires(const Mixer& mixer) { mixer.taps(); }
  state_space_cache(const Mixer& mixer, index_t sequences)
      : channels_(mixer.channels()), states_of_(mixer.states()), past_(mixer.taps() - 1), sequences_(sequences) {
    if (sequences < 1) throw_invalid("state_space_cache needs sequences >= 1, not ", sequences);
    const kernel::scan_inputs<Scalar> shape{.channels = channels_, .states = states_of_};
    states_.set_zero(sequences, shape.blocks() * shape.block_states());
    history_.set_zero(sequences, past_ * channels_);
  }

  index_t sequences() const noexcept { return sequences_; }

  void clear() noexcept {
    for (index_t s = 0; s < sequences_; ++s) clear_rows(s);
  }
  /// Throws std::invalid_argument if there is no such sequence.
  void clear(index_t sequence) {
    if (sequence < 0 || sequence >= sequences_)
      throw_invalid("state_space_cache.clear: there is no sequence ", sequence, " of ", sequences_);
    clear_rows(sequence);
  }

  /// Throws std::invalid_argument if the cache is another layer's, or has another number of sequences.
  template <typename Mixer>
  void validate(const Mixer& mixer, const routing_context<Scalar>& context) const {
    if (mixer.channels() != channels_ || mixer.states() != states_of_ || mixer.taps() - 1 != past_)
      throw_invalid("the state_space_cache is of ", channels_, " channels, ", states_of_, " states and ", past_ + 1,
                    " taps; the layer has ", mixer.channels(), ", ", mixer.states(), " and ", mixer.taps());
    if (context.sequence_count() != sequences_)
      throw_invalid("the context has ", context.sequence_count(), " sequences and the state_space_cache ", sequences_,
                    ": all of them, in order, some perhaps without a token");
  }

  /// For layers: what the scan goes on from, and the W - 1 rows of every sequence before its next token.
  Scalar* states() noexcept { return states_.data(); }
  const Scalar* history() const noexcept { return history_.data(); }
  /// The rows of x [T,I] now lie behind those that were there.
  void remember(std::span<const token_range> sequences, const kernel::scan_rows<const Scalar>& x) noexcept {
    for (index_t s = 0; s < sequences_; ++s) {
      const token_range& range = sequences[as_size(s)];
      Scalar* const rows = history_.row(s);
      const index_t fresh = (std::min)(past_, range.size()), stay = past_ - fresh;
      std::copy_n(rows + fresh * channels_, stay * channels_, rows);
      for (index_t i = 0; i < fresh; ++i)
        std::copy_n(x.row(range.end - fresh + i), channels_, rows + (stay + i) * channels_);
    }
  }

private:
  void clear_rows(index_t s) noexcept {
    std::fill_n(states_.row(s), states_.cols(), Scalar(0));
    std::fill_n(history_.row(s), history_.cols(), Scalar(0));
  }

  index_t channels_, states_of_, past_, sequences_;
  matrix_buffer<Scalar> states_, history_;
};

}  // namespace sluice::inline SLUICE_ISA
