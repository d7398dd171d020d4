/// The best code of every token: kernel/best_code.hpp spread over an executor.
///
///   x [T,D], keys [C,D] -> ids [T] in column 0, scores [T]        no_code and NaN for tokens without a code
///
/// Many tokens are cut into chunks, and each task packs the codes for its own: a fiftieth of what its chunk takes.
/// Where tokens are too few for that, codes are cut as well, and the best of the parts meet in order. Neither chunks
/// nor parts nor threads change a bit. No T x C matrix is ever in memory. A batch up to the largest seen allocates
/// nothing.
#pragma once

#include <sluice/codebook/code_search.hpp>
#include <sluice/core/executor.hpp>

#include <atomic>

namespace sluice::inline SLUICE_ISA {

/// What a search works in; one a thread that calls.
template <FloatOrDouble Scalar>
struct nearest_scratch {
  buffer<Scalar> memory;  ///< of every task that runs
  buffer<index_t> ids;    ///< [parts][T], where codes are cut
  buffer<Scalar> scores;  ///< [parts][T]
};

namespace detail {

/// How a search is cut: `chunks` of tokens times `parts` of codes.
struct search_cut {
  index_t rows;  ///< of a chunk
  index_t chunks;
  index_t codes;  ///< of a part
  index_t parts;

  template <typename Scalar>
  static search_cut of(index_t tokens, const kernel::code_keys<Scalar>& k, index_t threads) {
    // Packed rows of a chunk take no more than a megabyte of floats; half a thousand rows pay for packing the codes,
    // which come from memory each time.
    constexpr index_t most_numbers = 1 << 18, most_rows = 2048, fewest_rows = 512, fewest_codes = 512;
    constexpr index_t most_codes = 1 << 30;  // the kernel counts them in integers as wide as a lane
    constexpr index_t height = kernel::tile_rows;
    const index_t room = std::clamp(most_numbers / std::max<index_t>(k.width, 1), 4 * height, most_rows);
    const index_t share = std::clamp(tokens / (2 * threads) + 1, (std::min)(fewest_rows, room), room);
    search_cut cut;
    cut.rows = (share + height - 1) / height * height;
    cut.chunks = (tokens + cut.rows - 1) / cut.rows;
    const index_t most_parts = std::max<index_t>(k.count / fewest_codes, 1);
    const index_t parts = std::clamp<index_t>(threads / std::max<index_t>(cut.chunks, 1), 1, most_parts);
    cut.codes = std::clamp<index_t>((k.count + parts - 1) / parts, 1, most_codes);
    cut.parts = std::max<index_t>((k.count + cut.codes - 1) / cut.codes, 1);
    return cut;
  }
};

}  // namespace detail

/// scores may be null. Throws std::invalid_argument if shapes do not fit.
template <FloatOrDouble Scalar>
void nearest_codes(tokens_in<Scalar> x, const code_search<Scalar>& search, tokens_out<index_t> ids, Scalar* scores,
                   nearest_scratch<Scalar>& scratch, const executor_ref& executor = {}) {
  if (x.cols() != search.width() || ids.rows() != x.rows() || ids.cols() < 1)
    throw_invalid("a search for codes of width ", search.width(), " needs x [T, D] and ids [T, 1], not [", x.rows(),
                  ", ", x.cols(), "] and [", ids.rows(), ", ", ids.cols(), "]");
  const index_t tokens = x.rows();
  const kernel::code_keys<Scalar> keys = search.keys();
  const executor_ref threads = executor.for_work(tokens * keys.count * keys.width / 4);
  const auto cut = detail::search_cut::of(tokens, keys, threads.concurrency());
  const bool whole = cut.parts == 1;
  const index_t pieces = cut.chunks * cut.parts, height = (std::min)(cut.rows, tokens);
  const index_t size = kernel::code_blocking<Scalar>{height, keys.count, keys.width}.size();
  scratch.memory.resize(threads.concurrency() * size);
  scratch.ids.resize((std::max)(cut.parts, threads.concurrency()) * height);  // no fewer than parts times tokens
  scratch.scores.resize(scratch.ids.size());
  std::atomic<index_t> next{0};  // a task takes one piece after the other: memory is for as many as run
  threads.parallel_for((std::min)(pieces, threads.concurrency()), [&](index_t task) {
    for (index_t piece = next++; piece < pieces; piece = next++) {
      const index_t part = piece % cut.parts, begin = piece / cut.parts * cut.rows, first = part * cut.codes;
      kernel::code_keys<Scalar> some = keys;
      some.keys += first * keys.stride;
      some.count = (std::min)(cut.codes, keys.count - first);
      if (some.offsets != nullptr) some.offsets += first;
      index_t* to = ids.data() + begin * ids.outerStride();
      Scalar* best = scores == nullptr ? nullptr : scores + begin;
      if (!whole) {
        to = scratch.ids.data() + part * tokens + begin;
        best = scratch.scores.data() + part * tokens + begin;
      }
      kernel::best_code(x.data() + begin * x.outerStride(), x.outerStride(), (std::min)(cut.rows, tokens - begin), some,
                        to, whole ? ids.outerStride() : 1, best, scratch.memory.data() + task * size);
    }
  });
  if (whole) return;
  for (index_t t = 0; t < tokens; ++t) {
    index_t best = no_code;
    Scalar most = quiet_nan<Scalar>();
    for (index_t part = 0; part < cut.parts; ++part) {
      const index_t id = scratch.ids[part * tokens + t];
      const Scalar score = scratch.scores[part * tokens + t];
      if (id == no_code || (best != no_code && order_key(score) <= order_key(most))) continue;
      best = part * cut.codes + id;
      most = score;
    }
    ids(t, 0) = best;
    if (scores != nullptr) scores[t] = most;
  }
}

}  // namespace sluice::inline SLUICE_ISA
