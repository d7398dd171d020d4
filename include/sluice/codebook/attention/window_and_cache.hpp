/// Causal attention in linear time where keys are codes: a window key by key, everything older code by code.
///
/// One head of one sequence, cut into blocks of L. A query at i sees its own block up to i and the M positions before
/// the block one by one, and what is older only through its codes, exactly as if it saw them all:
///
///   a[i,j] = (q_i + u) . k_j + [i - j <= M] (q_i + v) . r_(i-j)          j in the window
///   a[i,s] = (q_i + u) . c_s + log n_s                                   n_s older keys have the code c_s
///   out_i  = softmax over both of a[i,.]  times  values v_j and means of values m_s
///
/// The cache of a block, n and m, is updated as positions leave the window; means, not sums, so that it stays exact
/// over long sequences. Keys without a code (hidden tokens) are seen by nobody, queries without one get zero. Backward:
/// values get their gradient through the cache too; a key's ends when it leaves the window, since codes are constants
/// there. Operations: T (L + M + S) (dk + dv). Sums run in order of positions.
/// Lingle 2023, "Transformer-VQ: Linear-Time Transformers via Vector Quantization", theorem 3.7 and appendix.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/kernel/best_code.hpp>
#include <sluice/kernel/gemm.hpp>
#include <sluice/kernel/softmax.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

namespace sluice::inline SLUICE_ISA::detail {

/// Where one head's numbers of one sequence lie: rows of positions, `key_stride` or `value_stride` apart.
template <typename Scalar>
struct head_view {
  index_t positions = 0, key_width = 0, value_width = 0, codes = 0, block = 0, window = 0;
  const Scalar *q = nullptr, *k = nullptr, *v = nullptr;
  index_t key_stride = 0, value_stride = 0;
  const index_t* ids = nullptr;                  ///< [positions]
  const Scalar* table = nullptr;                 ///< [S,dk]
  const Scalar *u = nullptr, *v_bias = nullptr;  ///< [dk]
  const Scalar* relative = nullptr;              ///< r [M+1,dk], key_stride apart

  index_t blocks() const noexcept { return (positions + block - 1) / block; }
  index_t begin_of(index_t b) const noexcept { return b * block; }
  index_t end_of(index_t b) const noexcept { return (std::min)(positions, (b + 1) * block); }
  /// The first position that is seen key by key from block b.
  index_t first_seen(index_t b) const noexcept { return std::max<index_t>(0, b * block - window); }
};

/// What a head works in. Caches of all blocks are kept where backward is to come.
template <typename Scalar>
struct head_memory {
  buffer<Scalar> counts;         ///< [blocks or 1][S]
  matrix_buffer<Scalar> means;   ///< [blocks or 1][S dv]
  buffer<Scalar> next_counts;    ///< [S] what a block after the last would find, and
  buffer<Scalar> next_means;     ///< [S dv]
  matrix_buffer<Scalar> with_u;  ///< q + u of a block
  matrix_buffer<Scalar> with_v;
  matrix_buffer<Scalar> weights;    ///< of a block: [n, S + L + M]
  matrix_buffer<Scalar> distances;  ///< (q + v) . r of a block: [n, M+1]
  matrix_buffer<Scalar> dweights;
  matrix_buffer<Scalar> ddistances;
  matrix_buffer<Scalar> dcached;  ///< [S,dv] gradient of every cached value with this code
  matrix_buffer<Scalar> dq;       ///< of a block
};

template <typename Scalar>
class attention_head {
public:
  attention_head(const head_view<Scalar>& h, head_memory<Scalar>& m, bool keeps) : h_(h), m_(m), keeps_(keeps) {}

  /// out [positions,dv], `value_stride` apart.
  void forward(Scalar* out) {
    const index_t kept = keeps_ ? h_.blocks() : std::min<index_t>(1, h_.blocks());
    m_.counts.assign(kept * h_.codes, 0);
    m_.means.set_zero(kept, h_.codes * h_.value_width);
    m_.next_counts.assign(h_.codes, 0);
    m_.next_means.assign(h_.codes * h_.value_width, 0);
    for (index_t b = 0; b < h_.blocks(); ++b) {
      std::copy_n(m_.next_counts.data(), h_.codes, counts(b));
      std::copy_n(m_.next_means.data(), m_.next_means.size(), means(b));
      const index_t n = weigh(b), first = h_.first_seen(b), seen = h_.end_of(b) - first, row = m_.weights.cols();
      Scalar* to = out + h_.begin_of(b) * h_.value_stride;
      kernel::multiply_nn(n, h_.value_width, h_.codes, m_.weights.data(), row, means(b), h_.value_width, to,
                          h_.value_stride);
      kernel::multiply_nn(n, h_.value_width, seen, m_.weights.data() + h_.codes, row, h_.v + first * h_.value_stride,
                          h_.value_stride, to, h_.value_stride, kernel::write::accumulate);
      take_in(first, (std::min)(h_.first_seen(b + 1), h_.positions));
    }
  }

  struct gradients {
    Scalar *dq = nullptr, *dk = nullptr, *dv = nullptr;  ///< as q, k and v lie; added to
    Scalar *du = nullptr, *dv_bias = nullptr;            ///< [dk], added to
    Scalar* drelative = nullptr;                         ///< [M+1,dk], dk apart, added to
  };

  /// dout is zero where a query is hidden.
  void backward(const Scalar* dout, const gradients& g) {
    m_.dcached.set_zero(h_.codes, h_.value_width);
    for (index_t b = h_.blocks() - 1; b >= 0; --b) {
      const index_t n = weigh(b), begin = h_.begin_of(b), first = h_.first_seen(b), seen = h_.end_of(b) - first;
      const index_t row = m_.weights.cols(), dk = h_.key_width, dv = h_.value_width;
      const Scalar *d = dout + begin * h_.value_stride, *p = m_.weights.data();
      // Values: those in the window, and the means of the cache.
      kernel::multiply_tn(seen, dv, n, p + h_.codes, row, d, h_.value_stride, g.dv + first * h_.value_stride,
                          h_.value_stride, kernel::write::accumulate);
      add_cached(b, n, d);
      for (index_t j = b == 0 ? 0 : h_.first_seen(b - 1); j < first; ++j)
        if (h_.ids[j] != no_code)
          kernel::add_scaled(Scalar(1), m_.dcached.row(h_.ids[j]), g.dv + j * h_.value_stride, dv);
      // Scores: softmax's backward, row by row.
      m_.dweights.resize(n, row);
      kernel::multiply_nt(n, h_.codes, dv, d, h_.value_stride, means(b), dv, m_.dweights.data(), row);
      kernel::multiply_nt(n, seen, dv, d, h_.value_stride, h_.v + first * h_.value_stride, h_.value_stride,
                          m_.dweights.data() + h_.codes, row);
      for (index_t i = 0; i < n; ++i) {
        Scalar* dw = m_.dweights.row(i);
        const Scalar* w = m_.weights.row(i);
        const Scalar mean = kernel::dot(w, dw, row);
        for (index_t j = 0; j < row; ++j) dw[j] = w[j] * (dw[j] - mean);
      }
      // Queries and keys.
      m_.dq.resize(n, dk);
      kernel::multiply_nn(n, dk, h_.codes, m_.dweights.data(), row, h_.table, dk, m_.dq.data(), dk);
      kernel::multiply_nn(n, dk, seen, m_.dweights.data() + h_.codes, row, h_.k + first * h_.key_stride, h_.key_stride,
                          m_.dq.data(), dk, kernel::write::accumulate);
      kernel::multiply_tn(seen, dk, n, m_.dweights.data() + h_.codes, row, m_.with_u.data(), dk,
                          g.dk + first * h_.key_stride, h_.key_stride, kernel::write::accumulate);
      add_to_queries(begin, n, g.dq, g.du);
      // Distances.
      m_.ddistances.set_zero(n, h_.window + 1);
      for_each_near(b, [&](index_t i, index_t j, index_t distance) {
        m_.ddistances(i, distance) = m_.dweights(i, h_.codes + j);
      });
      kernel::multiply_nn(n, dk, h_.window + 1, m_.ddistances.data(), h_.window + 1, h_.relative, h_.key_stride,
                          m_.dq.data(), dk);
      kernel::multiply_tn(h_.window + 1, dk, n, m_.ddistances.data(), h_.window + 1, m_.with_v.data(), dk, g.drelative,
                          dk, kernel::write::accumulate);
      add_to_queries(begin, n, g.dq, g.dv_bias);
    }
  }

private:
  index_t kept_place(index_t b) const noexcept { return keeps_ ? b : 0; }
  Scalar* counts(index_t b) const { return m_.counts.data() + kept_place(b) * h_.codes; }
  Scalar* means(index_t b) const { return m_.means.row(kept_place(b)); }

  /// Positions that leave the window.
  void take_in(index_t first, index_t end) {
    for (index_t j = first; j < end; ++j) {
      if (h_.ids[j] == no_code) continue;
      Scalar& count = m_.next_counts[h_.ids[j]];
      Scalar* mean = m_.next_means.data() + h_.ids[j] * h_.value_width;
      count += 1;
      for (index_t c = 0; c < h_.value_width; ++c) mean[c] += (h_.v[j * h_.value_stride + c] - mean[c]) / count;
    }
  }

  /// f(row of the block, place among the seen, i - j) for the pairs with a relative term.
  template <typename F>
  void for_each_near(index_t b, F&& f) const {
    const index_t begin = h_.begin_of(b), first = h_.first_seen(b);
    for (index_t i = begin; i < h_.end_of(b); ++i)
      for (index_t j = (std::max)(first, i - h_.window); j <= i; ++j) f(i - begin, j - first, i - j);
  }

  /// The softmax weights of block b, codes first; returns the number of queries.
  index_t weigh(index_t b) {
    const index_t begin = h_.begin_of(b), first = h_.first_seen(b), n = h_.end_of(b) - begin,
                  seen = h_.end_of(b) - first;
    const index_t dk = h_.key_width, row = h_.codes + seen;
    constexpr Scalar never = -std::numeric_limits<Scalar>::infinity();
    m_.with_u.resize(n, dk);
    m_.with_v.resize(n, dk);
    for (index_t i = 0; i < n; ++i) {
      const Scalar* q = h_.q + (begin + i) * h_.key_stride;
      for (index_t c = 0; c < dk; ++c) {
        m_.with_u(i, c) = q[c] + h_.u[c];
        m_.with_v(i, c) = q[c] + h_.v_bias[c];
      }
    }
    m_.weights.resize(n, row);
    m_.distances.resize(n, h_.window + 1);
    kernel::multiply_nt(n, h_.codes, dk, m_.with_u.data(), dk, h_.table, dk, m_.weights.data(), row);
    kernel::multiply_nt(n, seen, dk, m_.with_u.data(), dk, h_.k + first * h_.key_stride, h_.key_stride,
                        m_.weights.data() + h_.codes, row);
    kernel::multiply_nt(n, h_.window + 1, dk, m_.with_v.data(), dk, h_.relative, h_.key_stride, m_.distances.data(),
                        h_.window + 1);
    for_each_near(
        b, [&](index_t i, index_t j, index_t distance) { m_.weights(i, h_.codes + j) += m_.distances(i, distance); });
    for (index_t i = 0; i < n; ++i) {
      Scalar* w = m_.weights.row(i);
      if (h_.ids[begin + i] == no_code) {
        std::fill_n(w, row, Scalar(0));
        continue;
      }
      for (index_t s = 0; s < h_.codes; ++s) w[s] = counts(b)[s] == 0 ? never : w[s] + std::log(counts(b)[s]);
      for (index_t j = 0; j < seen; ++j)
        if (first + j > begin + i || h_.ids[first + j] == no_code) w[h_.codes + j] = never;
      kernel::softmax(w, w, row);
    }
    return n;
  }

  void add_cached(index_t b, index_t n, const Scalar* d) {
    for (index_t i = 0; i < n; ++i)
      for (index_t s = 0; s < h_.codes; ++s)
        if (const Scalar w = m_.weights(i, s); w != 0)
          kernel::add_scaled(w / counts(b)[s], d + i * h_.value_stride, m_.dcached.row(s), h_.value_width);
  }

  void add_to_queries(index_t begin, index_t n, Scalar* dq, Scalar* dbias) {
    for (index_t i = 0; i < n; ++i) {
      kernel::add_scaled(Scalar(1), m_.dq.row(i), dq + (begin + i) * h_.key_stride, h_.key_width);
      kernel::add_scaled(Scalar(1), m_.dq.row(i), dbias, h_.key_width);
    }
  }

  const head_view<Scalar>& h_;
  head_memory<Scalar>& m_;
  bool keeps_;
};

}  // namespace sluice::inline SLUICE_ISA::detail
