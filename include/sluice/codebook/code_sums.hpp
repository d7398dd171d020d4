/// How many tokens went to each code, and what they add up to: what k-means and moving averages learn from.
///
///   counts[c] = number of t with ids[t] = c        sums[c] = sum over those t of x[t]        x [T,D], sums [C,D]
///
/// With weights, sums[c] adds weight[t] x[t] and weights[c] adds weight[t]. Tokens of no_code are not looked at; codes
/// without a token get zeros. Every code adds its tokens one after the other, as they come in the batch: equal bits for
/// any thread count. A code belongs to one task, and tasks have about equally many tokens.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/kernel/best_code.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
struct code_sums {
  buffer<index_t> counts;      ///< [C]
  matrix_buffer<Scalar> sums;  ///< [C,D]
  buffer<Scalar> weights;      ///< [C]; the counts where tokens have no weights

  buffer<index_t> first;  ///< [C+1]: code c has the tokens order[first[c] .. first[c+1]]
  buffer<index_t> order;  ///< tokens by code, ascending within a code

  /// Room for a batch of so many tokens.
  void reserve(index_t tokens, index_t codes, index_t width) {
    counts.reserve(codes);
    sums.reserve(codes, width);
    weights.reserve(codes);
    first.reserve(codes + 1);
    order.reserve(tokens);
  }
};

namespace detail {

/// Fills counts, first and order: a counting sort. Throws std::invalid_argument for a number that is no code.
template <typename Scalar>
void sort_by_code(const index_t* ids, index_t stride, index_t tokens, index_t codes, code_sums<Scalar>& out) {
  out.counts.assign(codes, 0);
  for (index_t t = 0; t < tokens; ++t) {
    const index_t id = ids[t * stride];
    if (id == no_code) continue;
    if (id < 0 || id >= codes) throw_invalid("token ", t, " has the code ", id, ", there are ", codes);
    ++out.counts[id];
  }
  out.first.resize(codes + 1);
  out.first[0] = 0;
  for (index_t c = 0; c < codes; ++c) out.first[c + 1] = out.first[c] + out.counts[c];
  out.order.resize(out.first[codes]);
  for (index_t t = 0; t < tokens; ++t)
    if (const index_t id = ids[t * stride]; id != no_code) out.order[out.first[id]++] = t;
  for (index_t c = codes; c > 0; --c) out.first[c] = out.first[c - 1];
  out.first[0] = 0;
}

}  // namespace detail

/// `ids` lie ids_stride apart; `weights`, one a token, may be null. Throws std::invalid_argument for a number that is
/// no code.
template <FloatOrDouble Scalar>
void sum_by_code(tokens_in<Scalar> x, const index_t* ids, index_t codes, code_sums<Scalar>& out,
                 const executor_ref& executor = {}, index_t ids_stride = 1, const Scalar* weights = nullptr) {
  out.reserve(x.rows(), codes, x.cols());  // whatever is hidden now
  detail::sort_by_code(ids, ids_stride, x.rows(), codes, out);
  const index_t width = x.cols(), listed = out.order.size();
  out.sums.resize(codes, width);
  out.weights.resize(codes);
  const executor_ref threads = executor.for_work((listed + codes) * width);
  const index_t tasks = (std::min)(codes, 4 * threads.concurrency());
  // Where a task begins: at the first code that begins at its share of the tokens, or, without tokens, of the codes.
  const auto border = [&](index_t task) {
    const index_t* const first = out.first.begin();
    const auto share = [&](index_t c) { return first[c] + c; };
    const index_t wanted = share(codes) * task / tasks;
    index_t low = 0, high = codes;
    while (low < high) {
      const index_t middle = (low + high) / 2;
      if (share(middle) < wanted)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  };
  threads.parallel_for(tasks, [&](index_t task) {
    const index_t end = border(task + 1);
    for (index_t c = border(task); c < end; ++c) {
      Scalar* const sum = out.sums.row(c);
      std::fill_n(sum, width, Scalar(0));
      Scalar weight = weights == nullptr ? static_cast<Scalar>(out.counts[c]) : Scalar(0);
      for (index_t i = out.first[c]; i < out.first[c + 1]; ++i) {
        const index_t t = out.order[i];
        const Scalar factor = weights == nullptr ? Scalar(1) : weights[t];
        kernel::add_scaled(factor, x.data() + t * x.outerStride(), sum, width);
        if (weights != nullptr) weight += factor;
      }
      out.weights[c] = weight;
    }
  });
}

}  // namespace sluice::inline SLUICE_ISA
