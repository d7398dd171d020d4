/// The gradient of attention_forward, from its results and log_sums; scores are computed once more, block by block.
///
///   p[i,j] = exp(a[i,j] - log_sums_i)        dp[i,j] = dout_i . v_j       da[i,j] = p[i,j] (dp[i,j] - dout_i . out_i)
///   dv_j = sum over i of p[i,j] dout_i       dk_j = sum over i of da[i,j] scale q_i      dq_i = scale sum over j of da[i,j] k_j
///
/// i runs over the queries of all heads that share the key head. A task is some keys of a key head, all of them if they
/// are few; it goes through blocks of queries and adds up dk and dv itself. What tasks of other keys give to dq is
/// added in their order: bits do not depend on threads. Hidden keys and keys that nobody sees get 0.
/// Dao 2023, arXiv:2307.08691.
#pragma once

#include <sluice/kernel/attention/forward.hpp>

namespace sluice::inline SLUICE_ISA::kernel {

template <typename Scalar>
struct attention_gradients {
  head_rows<const Scalar> out{}, dout{};  ///< what forward returned, and its gradient
  const Scalar* log_sums = nullptr;
  head_rows<Scalar> dq{}, dk{}, dv{};  ///< written in the rows of the sequences
};

namespace detail {

/// Keys of a task: a quarter of the range's, but no fewer than keep a thread busy.
inline constexpr index_t keys_per_share = 512;
inline index_t share_of_keys(index_t keys) {
  const index_t quarter = (keys + 3) / 4;
  return (std::max)(keys_per_share, (quarter + keys_per_share - 1) / keys_per_share * keys_per_share);
}
inline index_t shares_of(const attended_range& r) {
  return std::max<index_t>(1, (r.keys + share_of_keys(r.keys) - 1) / share_of_keys(r.keys));
}

template <typename Scalar>
index_t whole_vectors(index_t count) {
  return (count + simd_width<Scalar> - 1) / simd_width<Scalar> * simd_width<Scalar>;
}

/// Some keys of a range, keys_per_share at most: what they get of all queries, and what queries get of them.
template <typename Scalar>
class backward_keys {
public:
  static index_t scratch(const attention_shape& s) {
    const index_t lanes = attention_lanes<Scalar> * (2 * s.key_width + s.value_width + 2 * attention_keys + 3);
    const index_t rows = (attention_lanes<Scalar> + keys_per_share) *
                         (whole_vectors<Scalar>(s.key_width) + whole_vectors<Scalar>(s.value_width));
    return lanes + rows + keys_per_share * (s.key_width + s.value_width);
  }

  backward_keys(const attention_inputs<Scalar>& in, const attention_gradients<Scalar>& g, const attended_range& range,
                index_t key_head, Scalar* scratch)
      : in_(in),
        g_(g),
        range_(range),
        key_head_(key_head),
        dk_width_(whole_vectors<Scalar>(in.shape.key_width)),
        dv_width_(whole_vectors<Scalar>(in.shape.value_width)) {
    const auto take = [&](index_t numbers) { return std::exchange(scratch, scratch + numbers); };
    constexpr index_t L = attention_lanes<Scalar>;
    q_lanes_ = take(in.shape.key_width * L), dq_lanes_ = take(in.shape.key_width * L);
    dout_lanes_ = take(in.shape.value_width * L);
    p_ = take(attention_keys * L), da_ = take(attention_keys * L);
    log_sums_ = take(L), mean_ = take(L), scale_ = take(L);
    q_rows_ = take(dk_width_ * L), dout_rows_ = take(dv_width_ * L);
    k_ = take(keys_per_share * in.shape.key_width), v_ = take(keys_per_share * in.shape.value_width);
    dk_ = take(keys_per_share * dk_width_), dv_ = take(keys_per_share * dv_width_);
  }

  /// The keys begin .. end of the range; what queries get of them is written or added to dq.
  void run(index_t begin, index_t end, const head_rows<Scalar>& dq, write mode) {
    std::fill_n(dk_, (end - begin) * dk_width_, Scalar(0));
    std::fill_n(dv_, (end - begin) * dv_width_, Scalar(0));
    copy_rows(in_.k, key_head_, range_.first_key + begin, end - begin, 0, in_.shape.key_width, k_);
    copy_rows(in_.v, key_head_, range_.first_key + begin, end - begin, 0, in_.shape.value_width, v_);
    const index_t all = range_.queries * in_.shape.shared();
    for (index_t first = 0; first < all; first += attention_lanes<Scalar>) {
      const query_lanes<Scalar> lanes{in_.shape, range_, key_head_, first,
                                      (std::min)(attention_lanes<Scalar>, all - first)};
      add_queries(lanes, begin, (std::min)(end, lanes.most_keys()), dq, mode);
    }
    for (index_t j = begin; j < end; ++j) {
      std::copy_n(dk_ + (j - begin) * dk_width_, in_.shape.key_width, g_.dk.at(range_.first_key + j, key_head_));
      std::copy_n(dv_ + (j - begin) * dv_width_, in_.shape.value_width, g_.dv.at(range_.first_key + j, key_head_));
    }
  }

private:
  void add_queries(const query_lanes<Scalar>& lanes, index_t begin, index_t end, const head_rows<Scalar>& dq,
                   write mode) {
    const attention_shape& s = in_.shape;
    const index_t L = lanes.padded();
    const Scalar scale = static_cast<Scalar>(s.score_scale());
    std::fill_n(dq_lanes_, s.key_width * L, Scalar(0));
    std::fill_n(scale_, L, scale);
    if (begin < end) {
      pack_lanes(lanes, in_.q, s.key_width, static_cast<Scalar>(s.score_scale() * std::numbers::log2e), q_lanes_);
      pack_lanes(lanes, g_.dout, s.value_width, Scalar(1), dout_lanes_);
      pack_rows(lanes, scale);
      for (index_t first = begin; first < end; first += attention_keys)
        add_keys(lanes, first, (std::min)(attention_keys, end - first), first - begin);
    }
    unpack_lanes(lanes, dq_lanes_, scale_, s.key_width, dq, mode);
  }

  /// Rows of q and dout one after the other, and what softmax's gradient needs of each.
  void pack_rows(const query_lanes<Scalar>& lanes, Scalar scale) {
    const attention_shape& s = in_.shape;
    const index_t L = lanes.padded();
    for (index_t l = 0; l < L; ++l) {
      const index_t lane = (std::min)(l, lanes.count - 1);
      const Scalar *q = lanes.at(in_.q, lane), *dout = lanes.at(g_.dout, lane);
      log_sums_[l] = g_.log_sums[lanes.row(lane) * s.heads + lanes.head(lane)] * std::numbers::log2e_v<Scalar>;
      mean_[l] = dot(dout, lanes.at(g_.out, lane), s.value_width);
      copy_scaled(scale, q, q_rows_ + l * dk_width_, s.key_width);
      std::copy_n(dout, s.value_width, dout_rows_ + l * dv_width_);
      std::fill(q_rows_ + l * dk_width_ + s.key_width, q_rows_ + (l + 1) * dk_width_, Scalar(0));
      std::fill(dout_rows_ + l * dv_width_ + s.value_width, dout_rows_ + (l + 1) * dv_width_, Scalar(0));
    }
  }

  /// Some keys of the block, `place` behind its first.
  void add_keys(const query_lanes<Scalar>& lanes, index_t first, index_t keys, index_t place) {
    const index_t L = lanes.padded(), dk = in_.shape.key_width, dv = in_.shape.value_width;
    const Scalar *k = k_ + place * dk, *v = v_ + place * dv;
    multiply_nn(keys, L, dk, k, dk, q_lanes_, L, p_, L);
    multiply_nn(keys, L, dv, v, dv, dout_lanes_, L, da_, L);
    hide_scores(in_, lanes, first, keys, no_score<Scalar>, p_);
    for (index_t l = 0; l < L; l += simd_width<Scalar>) score_gradients(l, keys, L);
    multiply_nn(keys, dv_width_, lanes.count, p_, L, dout_rows_, dv_width_, dv_ + place * dv_width_, dv_width_,
                write::accumulate);
    multiply_nn(keys, dk_width_, lanes.count, da_, L, q_rows_, dk_width_, dk_ + place * dk_width_, dk_width_,
                write::accumulate);
    multiply_tn(dk, L, keys, k, dk, da_, L, dq_lanes_, L, write::accumulate);
  }

  /// Scores of a vector of lanes become p, and dp becomes da.
  void score_gradients(index_t lane, index_t keys, index_t L) {
    const simd<Scalar> log_sum = load(log_sums_ + lane), mean = load(mean_ + lane);
    for (index_t at = lane; at < keys * L; at += L) {
      const simd<Scalar> p = power_of_two<Scalar>(load(p_ + at) - log_sum);
      store<Scalar>(p_ + at, p);
      store<Scalar>(da_ + at, p * (load(da_ + at) - mean));
    }
  }

  const attention_inputs<Scalar>& in_;
  const attention_gradients<Scalar>& g_;
  const attended_range& range_;
  index_t key_head_, dk_width_, dv_width_;
  Scalar *q_lanes_, *dq_lanes_, *dout_lanes_, *p_, *da_, *log_sums_, *mean_, *scale_, *q_rows_, *dout_rows_, *k_, *v_,
      *dk_, *dv_;
};

/// dq += what the tasks after a range's first have for it.
template <typename Scalar>
void add_query_shares(const attention_inputs<Scalar>& in, const attention_gradients<Scalar>& g, index_t rows,
                      const attention_memory<Scalar>& memory, const executor_ref& executor) {
  const attention_shape& s = in.shape;
  const index_t width = s.heads * s.key_width;
  for (const attended_range& r : in.sequences)
    if (shares_of(r) > 1)
      executor.parallel_blocks(r.queries, 32, width * shares_of(r), [&](index_t begin, index_t end) {
        for (index_t i = r.first_query + begin; i < r.first_query + end; ++i)
          for (index_t share = 1; share < shares_of(r); ++share)
            for (index_t h = 0; h < s.heads; ++h)
              add_scaled(Scalar(1), memory.query_shares.row((share - 1) * rows + i) + h * s.key_width, g.dq.at(i, h),
                         s.key_width);
      });
}

}  // namespace detail

template <typename Scalar>
void attention_backward(const attention_inputs<Scalar>& in, const attention_gradients<Scalar>& g,
                        attention_memory<Scalar>& memory, const executor_ref& executor) {
  const attention_shape& s = in.shape;
  const index_t width = s.heads * s.key_width;
  detail::begin_attention_tasks(in, memory, [](index_t queries, index_t keys) { return queries + keys; });
  index_t shares = 1, rows = 0, key_rows = 0;
  for (index_t i = 0; i < static_cast<index_t>(in.sequences.size()); ++i) {
    const attended_range& r = in.sequences[as_size(i)];
    shares = (std::max)(shares, detail::shares_of(r));
    rows = (std::max)(rows, r.first_query + r.queries);
    key_rows = (std::max)(key_rows, r.first_key + r.keys);
    if (r.queries == 0 && r.keys == 0) continue;
    for (index_t h = 0; h < s.key_heads; ++h)
      for (index_t share = 0; share < detail::shares_of(r); ++share) {
        const index_t first = share * detail::share_of_keys(r.keys);
        memory.tasks.push_back({i, h, first, (std::min)(detail::share_of_keys(r.keys), r.keys - first)});
      }
  }
  // However the keys are cut.
  memory.query_shares.reserve(std::min<index_t>(3, key_rows / detail::keys_per_share) * rows, width);
  memory.query_shares.resize((shares - 1) * rows, width);
  detail::run_attention_tasks(
      memory, detail::backward_keys<Scalar>::scratch(s), detail::attention_work(in) * 2, executor,
      [&](const auto& task, Scalar* scratch) {
        const attended_range& r = in.sequences[as_size(task.range)];
        const index_t share = task.first / detail::share_of_keys(r.keys);
        const head_rows<Scalar> own =
            share == 0 ? g.dq : head_rows<Scalar>{memory.query_shares.row((share - 1) * rows), width, s.key_width};
        detail::backward_keys<Scalar> keys(in, g, r, task.key_head, scratch);
        index_t begin = task.first;
        do {  // once where there are no keys: dq is zero then
          const index_t end = (std::min)(begin + detail::keys_per_share, task.first + task.count);
          keys.run(begin, end, own, begin == task.first ? write::replace : write::accumulate);
          begin = end;
        } while (begin < task.first + task.count);
      });
  detail::add_query_shares(in, g, rows, memory, executor);
}

}  // namespace sluice::inline SLUICE_ISA::kernel
