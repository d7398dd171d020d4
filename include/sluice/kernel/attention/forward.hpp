/// Scaled dot-product attention, block by block: no matrix of queries by keys ever lies in memory.
///
///   a[i,j] = scale q_i . k_j     for the keys j that query i sees       out_i = sum over j of softmax(a[i,.])_j v_j
///   log_sums[i] = log sum over j of exp a[i,j], which backward needs
///
/// A task is a block of queries of a key head, in lanes (kernel/attention/lanes.hpp); it goes through the keys in blocks,
/// from the range's first one on, with a running maximum. What comes of a query depends on its range alone, not on the
/// queries beside it: the last token of a sequence has the same bits whether its sequence is attended as a whole or
/// token by token. Bits are equal for any number of threads. A query that sees no key gets 0, and log_sums 0. Memory is
/// a workspace's; a warm call allocates nothing. Rabe and Staats 2021, arXiv:2112.05682; Dao et al. 2022,
/// arXiv:2205.14135.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/kernel/attention/exponential.hpp>
#include <sluice/kernel/attention/lanes.hpp>

#include <atomic>
#include <cmath>
#include <numbers>

namespace sluice::inline SLUICE_ISA::kernel {

/// What attention works in: one a workspace or tape.
template <typename Scalar>
struct attention_memory {
  struct task {
    index_t range, key_head, first, count;  ///< lanes forward, keys backward
  };
  buffer<task> tasks;
  matrix_buffer<Scalar> scratch;       ///< a row a thread
  matrix_buffer<Scalar> query_shares;  ///< backward: what blocks of keys after the first give to dq
};

namespace detail {

/// Runs body(task, scratch) for all tasks, on as many threads as there are, each with `numbers` of scratch.
template <typename Scalar, typename Body>
void run_attention_tasks(attention_memory<Scalar>& memory, index_t numbers, index_t work, const executor_ref& executor,
                         Body&& body) {
  const executor_ref threads = executor.for_work(work);
  const index_t workers = (std::min)(threads.concurrency(), memory.tasks.size());
  constexpr index_t line = 64 / sizeof(Scalar);
  memory.scratch.resize(workers, (numbers + line - 1) / line * line);
  std::atomic<index_t> next{0};  // tasks differ in work, and scratch is for as many as run
  threads.parallel_for(workers, [&](index_t worker) {
    for (index_t t = next++; t < memory.tasks.size(); t = next++) body(memory.tasks[t], memory.scratch.row(worker));
  });
}

template <typename Scalar>
class forward_block {
public:
  static index_t scratch(const attention_shape& s) {
    return attention_lanes<Scalar> * (s.key_width + s.value_width + attention_keys + 3);
  }

  forward_block(const attention_inputs<Scalar>& in, const query_lanes<Scalar>& lanes, Scalar* scratch)
      : in_(in), lanes_(lanes), L_(lanes.padded()) {
    const auto take = [&](index_t rows) { return std::exchange(scratch, scratch + rows * attention_lanes<Scalar>); };
    queries_ = take(in.shape.key_width), sums_ = take(in.shape.value_width), scores_ = take(attention_keys);
    maximum_ = take(1), total_ = take(1), factor_ = take(1);
  }

  void run(const head_rows<Scalar>& out, Scalar* log_sums) {
    const attention_shape& s = in_.shape;
    pack_lanes(lanes_, in_.q, s.key_width, static_cast<Scalar>(s.score_scale() * std::numbers::log2e), queries_);
    std::fill_n(sums_, s.value_width * L_, Scalar(0));
    std::fill_n(total_, L_, Scalar(0));
    std::fill_n(maximum_, L_, no_maximum<Scalar>);
    const index_t most = lanes_.most_keys();
    for (index_t first = 0; first < most; first += attention_keys)
      attend(first, (std::min)(attention_keys, most - first));
    for (index_t l = 0; l < L_; ++l) {
      factor_[l] = total_[l] > Scalar(0) ? 1 / total_[l] : Scalar(0);
      if (log_sums != nullptr && l < lanes_.count)
        log_sums[lanes_.row(l) * s.heads + lanes_.head(l)] =
            total_[l] > Scalar(0) ? maximum_[l] * std::numbers::ln2_v<Scalar> + std::log(total_[l]) : Scalar(0);
    }
    unpack_lanes(lanes_, sums_, factor_, s.value_width, out, write::replace);
  }

private:
  void attend(index_t first, index_t keys) {
    const attention_shape& s = in_.shape;
    const index_t row = lanes_.range.first_key + first;
    multiply_nn(keys, L_, s.key_width, in_.k.at(row, lanes_.key_head), in_.k.row_stride, queries_, L_, scores_, L_);
    for_each_hidden(in_, lanes_, first, keys, [&](index_t place, const auto& sees) {
      store<Scalar>(scores_ + place, xsimd::select(sees, load(scores_ + place), simd<Scalar>(no_score<Scalar>)));
    });
    bool moved = false;
    for (index_t l = 0; l < L_; l += simd_width<Scalar>)
      moved |= exponentiate_lanes(scores_ + l, keys, L_, maximum_ + l, total_ + l, factor_ + l);
    if (moved)
      for (index_t c = 0; c < s.value_width; ++c)
        for (index_t l = 0; l < L_; l += simd_width<Scalar>)
          store<Scalar>(sums_ + c * L_ + l, load(sums_ + c * L_ + l) * load(factor_ + l));
    multiply_tn(s.value_width, L_, keys, in_.v.at(row, lanes_.key_head), in_.v.row_stride, scores_, L_, sums_, L_,
                write::accumulate);
  }

  const attention_inputs<Scalar>& in_;
  const query_lanes<Scalar>& lanes_;
  index_t L_;
  Scalar *queries_, *sums_, *scores_, *maximum_, *total_, *factor_;
};

/// What an executor counts: a multiplication a quarter, an exponential 16.
template <typename Scalar>
index_t attention_work(const attention_inputs<Scalar>& in) {
  index_t pairs = 0;
  for (const attended_range& r : in.sequences) pairs += r.queries * r.keys;
  return pairs * in.shape.heads * ((in.shape.key_width + in.shape.value_width) / 4 + 16);
}

}  // namespace detail

/// Writes out and, unless it is null, log_sums [rows of q, heads], in the rows of the sequences' queries.
template <typename Scalar>
void attention_forward(const attention_inputs<Scalar>& in, const head_rows<Scalar>& out, Scalar* log_sums,
                       attention_memory<Scalar>& memory, const executor_ref& executor) {
  memory.tasks.clear();
  for (index_t s = 0; s < static_cast<index_t>(in.sequences.size()); ++s) {
    const index_t lanes = in.sequences[as_size(s)].queries * in.shape.shared();
    for (index_t h = 0; h < in.shape.key_heads; ++h)
      for (index_t first = 0; first < lanes; first += attention_lanes<Scalar>)
        memory.tasks.push_back({s, h, first, (std::min)(attention_lanes<Scalar>, lanes - first)});
  }
  detail::run_attention_tasks(memory, detail::forward_block<Scalar>::scratch(in.shape), detail::attention_work(in),
                              executor, [&](const auto& task, Scalar* scratch) {
                                const query_lanes<Scalar> lanes{in.shape, in.sequences[as_size(task.range)],
                                                                task.key_head, task.first, task.count};
                                detail::forward_block<Scalar>(in, lanes, scratch).run(out, log_sums);
                              });
}

}  // namespace sluice::inline SLUICE_ISA::kernel
