/// Scaled dot-product attention, block by block: no matrix of queries by keys ever lies in memory.
///
///   a[i,j] = scale q_i . k_j     for the keys j that query i sees       out_i = sum over j of softmax(a[i,.])_j v_j
///   log_sums[i] = log sum over j of exp a[i,j], which backward needs
///
/// A task is a block of queries of a key head, in lanes (kernel/attention/lanes.hpp); it goes through the keys in
/// blocks, from the range's first one on, with a running maximum. What comes of a query depends on its range alone, not
/// on the queries beside it: the last token of a sequence has the same bits whether its sequence is attended as a whole
/// or token by token. Bits are equal for any number of threads. A query that sees no key gets 0, and log_sums 0. Memory
/// is a workspace's; a warm call allocates nothing. Rabe and Staats 2021, arXiv:2112.05682; Dao et al. 2022,
/// arXiv:2205.14135.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/kernel/attention/exponential.hpp>
#include <sluice/kernel/attention/lanes.hpp>
#include <sluice/kernel/scratch_tasks.hpp>

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

/// Forgets the tasks and makes room for most(queries, keys) of a key head, as many as there can be however those are
/// cut: a batch of shorter sequences has more tasks than a larger one, and must find the room as well.
template <typename Scalar, typename Most>
void begin_attention_tasks(const attention_inputs<Scalar>& in, attention_memory<Scalar>& memory, const Most& most) {
  index_t queries = 0, keys = 0;
  for (const attended_range& r : in.sequences) queries += r.queries, keys += r.keys;
  memory.tasks.clear();
  memory.tasks.reserve(in.shape.key_heads * most(queries, keys));
}

/// Runs body(task, scratch) for all tasks, on as many threads as there are, each with `numbers` of scratch.
template <typename Scalar, typename Body>
void run_attention_tasks(attention_memory<Scalar>& memory, index_t numbers, index_t work, const executor_ref& executor,
                         Body&& body) {
  run_scratch_tasks(memory.tasks.size(), numbers, work, memory.scratch, executor,
                    [&](index_t task, Scalar* scratch) { body(memory.tasks[task], scratch); });
}

/// What is known of the queries of a block of lanes: their numbers, and the sums over the keys so far.
template <typename Scalar>
struct lanes_so_far {
  static constexpr index_t L = attention_lanes<Scalar>;

  static index_t numbers(const attention_shape& s) { return L * (s.key_width + s.value_width + 3); }
  lanes_so_far(const attention_shape& s, Scalar* memory)
      : queries(memory),
        sums(queries + L * s.key_width),
        maximum(sums + L * s.value_width),
        total(maximum + L),
        factor(total + L) {}

  Scalar *queries, *sums;            ///< [dk][L], [dv][L]
  Scalar *maximum, *total, *factor;  ///< [L]
};

/// Some blocks of lanes, which share every block of keys that is read.
template <typename Scalar>
class forward_task {
public:
  static constexpr index_t L = attention_lanes<Scalar>;
  static constexpr index_t most_blocks = 8;

  static index_t scratch(const attention_shape& s) {
    return most_blocks * lanes_so_far<Scalar>::numbers(s) + attention_keys * (L + s.key_width + s.value_width);
  }

  forward_task(const attention_inputs<Scalar>& in, const query_lanes<Scalar>& all, Scalar* scratch)
      : in_(in), all_(all), scratch_(scratch) {
    scores_ = scratch + most_blocks * lanes_so_far<Scalar>::numbers(in.shape);
    keys_ = scores_ + attention_keys * L;
    values_ = keys_ + attention_keys * in.shape.key_width;
  }

  void run(const head_rows<Scalar>& out, Scalar* log_sums) {
    for_each_block([&](const query_lanes<Scalar>& lanes, const lanes_so_far<Scalar>& so_far) { begin(lanes, so_far); });
    const attention_shape& s = in_.shape;
    const index_t most = all_.most_keys(), row = all_.range.first_key;
    for (index_t first = 0; first < most; first += attention_keys) {
      const index_t keys = (std::min)(attention_keys, most - first);
      copy_rows(in_.k, all_.key_head, row + first, keys, row + most, s.key_width, keys_);
      copy_rows(in_.v, all_.key_head, row + first, keys, row + most, s.value_width, values_);
      for_each_block([&](const query_lanes<Scalar>& lanes, const lanes_so_far<Scalar>& so_far) {
        const index_t seen = (std::min)(keys, lanes.most_keys() - first);
        if (seen > 0) attend(lanes, so_far, first, seen);
      });
    }
    for_each_block([&](const query_lanes<Scalar>& lanes, const lanes_so_far<Scalar>& so_far) {
      finish(lanes, so_far, out, log_sums);
    });
  }

private:
  template <typename F>
  void for_each_block(F&& f) const {
    for (index_t first = 0; first < all_.count; first += L)
      f(query_lanes<Scalar>{all_.shape, all_.range, all_.key_head, all_.first + first,
                            (std::min)(L, all_.count - first)},
        lanes_so_far<Scalar>(in_.shape, scratch_ + first / L * lanes_so_far<Scalar>::numbers(in_.shape)));
  }

  void begin(const query_lanes<Scalar>& lanes, const lanes_so_far<Scalar>& so_far) const {
    const attention_shape& s = in_.shape;
    pack_lanes(lanes, in_.q, s.key_width, static_cast<Scalar>(s.score_scale() * std::numbers::log2e), so_far.queries);
    std::fill_n(so_far.sums, s.value_width * L, Scalar(0));
    std::fill_n(so_far.total, L, Scalar(0));
    std::fill_n(so_far.maximum, L, no_maximum<Scalar>);
  }

  void attend(const query_lanes<Scalar>& lanes, const lanes_so_far<Scalar>& so_far, index_t first, index_t keys) {
    const index_t n = lanes.padded(), dk = in_.shape.key_width, dv = in_.shape.value_width;
    multiply_nn(keys, n, dk, keys_, dk, so_far.queries, n, scores_, n);
    hide_scores(in_, lanes, first, keys, no_score<Scalar>, scores_);
    for (index_t l = 0; l < n; l += simd_width<Scalar>)
      if (exponentiate_lanes(scores_ + l, keys, n, so_far.maximum + l, so_far.total + l, so_far.factor + l))
        for (index_t c = 0; c < dv; ++c) {
          Scalar* sum = so_far.sums + c * n + l;
          store<Scalar>(sum, load(sum) * load(so_far.factor + l));
        }
    multiply_tn(dv, n, keys, values_, dv, scores_, n, so_far.sums, n, write::accumulate);
  }

  void finish(const query_lanes<Scalar>& lanes, const lanes_so_far<Scalar>& so_far, const head_rows<Scalar>& out,
              Scalar* log_sums) const {
    for (index_t l = 0; l < lanes.count; ++l) {
      const bool sees = so_far.total[l] > Scalar(0);
      so_far.factor[l] = sees ? 1 / so_far.total[l] : Scalar(0);
      if (log_sums != nullptr)
        log_sums[lanes.row(l) * in_.shape.heads + lanes.head(l)] =
            sees ? so_far.maximum[l] * std::numbers::ln2_v<Scalar> + std::log(so_far.total[l]) : Scalar(0);
    }
    unpack_lanes(lanes, so_far.sums, so_far.factor, in_.shape.value_width, out, write::replace);
  }

  const attention_inputs<Scalar>& in_;
  const query_lanes<Scalar>& all_;
  Scalar *scratch_, *scores_, *keys_, *values_;
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
  const attention_shape& s = in.shape;
  index_t all = 0;
  for (const attended_range& r : in.sequences) all += r.queries * s.heads;
  // Several blocks a task, for each task reads the keys anew, but tasks enough to keep all threads busy to the end.
  const index_t blocks = std::clamp<index_t>(all / (attention_lanes<Scalar> * 4 * executor.concurrency()), 1,
                                             detail::forward_task<Scalar>::most_blocks);
  detail::begin_attention_tasks(in, memory, [&](index_t queries, index_t) {
    return queries * s.shared() / attention_lanes<Scalar> + queries;
  });
  for (index_t i = 0; i < static_cast<index_t>(in.sequences.size()); ++i) {
    const index_t lanes = in.sequences[as_size(i)].queries * s.shared(), some = blocks * attention_lanes<Scalar>;
    for (index_t h = 0; h < s.key_heads; ++h)
      for (index_t first = 0; first < lanes; first += some)
        memory.tasks.push_back({i, h, first, (std::min)(some, lanes - first)});
  }
  detail::run_attention_tasks(
      memory, detail::forward_task<Scalar>::scratch(s), detail::attention_work(in), executor,
      [&](const auto& task, Scalar* scratch) {
        const query_lanes<Scalar> lanes{s, in.sequences[as_size(task.range)], task.key_head, task.first, task.count};
        detail::forward_task<Scalar>(in, lanes, scratch).run(out, log_sums);
      });
}

}  // namespace sluice::inline SLUICE_ISA::kernel
