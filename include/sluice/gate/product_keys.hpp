/// Product keys: the k best of n² pairs of keys, found by looking at 2n keys.
///
///   queries [T, 2·heads·d], columns ordered (half, head, d)   keys [heads, n, 2, d]
///   s1_i = <q[0,h], keys[h,i,0]>,  s2_j = <q[1,h], keys[h,j,1]>;   score(i n + j) = s1_i + s2_j
///
/// Only the c best i and the c best j are paired. With c >= min(k, n) the result is that of a search through all n²
/// scores: were (i, j) among the k best and i not among the c best, c better i' would give c better pairs (i', j).
/// Equal scores: the lower pair; scores that become equal only by rounding go by their halves. NaN counts as -infinity.
/// Gradient: that of a chosen score goes to both of its halves; the choice is a constant. Initial values: normal with
/// deviation 0.02. Lample et al. 2019, arXiv:1907.05242.
#pragma once

#include <sluice/core/choices.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/kernel/gemm.hpp>
#include <sluice/kernel/linear.hpp>
#include <sluice/kernel/top_k.hpp>

#include <algorithm>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class product_keys {
public:
  using scalar = Scalar;

  struct tape {
    matrix_buffer<Scalar> half_query;   ///< [T,d] scratch: of one half of one head, side by side
    matrix_buffer<Scalar> similarity;   ///< [T,n] scratch: one half of one head
    matrix_buffer<index_t> candidates;  ///< [T,2c] scratch: keys of one head, ascending in each half
    matrix_buffer<Scalar> halves;       ///< [T,2c] scratch: their similarities
    matrix_buffer<Scalar> sums;         ///< [T,c²] scratch
    buffer<std::uint8_t> invalid;       ///< [T] 1 where a similarity or a chosen score was NaN
  };

  /// Throws std::invalid_argument unless every count is at least 1.
  product_keys(index_t heads, index_t keys, index_t width) {
    if (heads < 1 || keys < 1 || width < 1)
      throw_invalid("product keys need heads, n, d >= 1, not ", heads, ", ", keys, ", ", width);
    keys_ = {{heads, keys, 2, width}, parameter_role::weight, initial_values::normal(0.02)};
  }

  index_t heads() const noexcept { return keys_.shape()[0]; }
  index_t keys() const noexcept { return keys_.shape()[1]; }
  index_t width() const noexcept { return keys_.shape()[3]; }
  index_t pairs() const noexcept { return keys() * keys(); }

  /// Throws std::invalid_argument unless 1 <= k <= n², c <= n and c² >= k.
  void validate(index_t k, index_t c) const {
    if (k < 1 || k > pairs()) throw_invalid("product keys need 1 <= k <= n * n, not k = ", k, " with n = ", keys());
    if (c < 1 || c > keys() || c * c < k)
      throw_invalid("product keys need c <= n candidates with c * c >= k, not c = ", c, " with n = ", keys(),
                    ", k = ", k);
  }

  /// pair and scores [T, heads·k]: the choices of head h from column h·k on, best first.
  void search(const matrix_buffer<Scalar>& queries, index_t k, index_t c, matrix_buffer<index_t>& pair,
              matrix_buffer<Scalar>& scores, tape& t, const executor_ref& executor) const {
    const index_t tokens = queries.rows();
    pair.resize(tokens, heads() * k);
    scores.resize(tokens, heads() * k);
    t.half_query.resize(tokens, width());
    t.similarity.resize(tokens, keys());
    t.candidates.resize(tokens, 2 * c);
    t.halves.resize(tokens, 2 * c);
    t.sums.resize(tokens, c * c);
    t.invalid.assign(tokens, 0);
    const index_t block = detail::rows_per_reading<Scalar>(tokens, width(), executor);
    executor.parallel_blocks(tokens, block, heads() * keys() * width(), [&](index_t begin, index_t end) {
      for (index_t h = 0; h < heads(); ++h) {
        for (index_t half = 0; half < 2; ++half) {
          // Side by side: rows that are a large power of two apart would push each other out of the first cache.
          for (index_t token = begin; token < end; ++token)
            std::copy_n(queries.row(token) + query(h, half), width(), t.half_query.row(token));
          compare(t.half_query.row(begin), width(), end - begin, h, half, t.similarity.row(begin));
          for (index_t token = begin; token < end; ++token) find_candidates(t, token, half, c);
        }
        for (index_t token = begin; token < end; ++token)
          pair_up(t, token, c, k, pair.row(token) + h * k, scores.row(token) + h * k);
      }
    });
  }

  /// out [end - begin, n]: s1 (half 0) or s2 (half 1) of one head.
  void similarities(const matrix_buffer<Scalar>& queries, index_t head, index_t half, index_t begin, index_t end,
                    Scalar* out) const {
    compare(queries.row(begin) + query(head, half), queries.cols(), end - begin, head, half, out);
  }

  /// Writes dqueries and adds into the keys' gradient; entries of `pair` that are no_expert take no part.
  void backward(const matrix_buffer<Scalar>& queries, const matrix_buffer<index_t>& pair,
                const matrix_buffer<Scalar>& dscores, matrix_buffer<Scalar>& dqueries, const executor_ref& executor) {
    const index_t k = pair.cols() / heads();
    const auto each_choice = [&](index_t token, index_t h, index_t half, auto&& f) {
      for (index_t s = h * k; s < (h + 1) * k; ++s)
        if (pair(token, s) != no_expert && dscores(token, s) != Scalar(0))
          f(offset(h, half == 0 ? pair(token, s) / keys() : pair(token, s) % keys(), half), dscores(token, s));
    };
    dqueries.resize(queries.rows(), queries.cols());
    executor.parallel_each(queries.rows(), 4 * dqueries.cols(), [&](index_t token) {
      std::fill_n(dqueries.row(token), dqueries.cols(), Scalar(0));
      for (index_t part = 0; part < 2 * heads(); ++part)
        each_choice(token, part % heads(), part / heads(), [&](index_t key, Scalar dscore) {
          kernel::add_scaled(dscore, keys_.data() + key, dqueries.row(token) + part * width(), width());
        });
    });
    Scalar* dkeys = keys_.gradient().data();
    executor.for_work(queries.rows() * queries.cols()).parallel_for(2 * heads(), [&](index_t part) {
      for (index_t token = 0; token < queries.rows(); ++token)
        each_choice(token, part % heads(), part / heads(), [&](index_t key, Scalar dscore) {
          kernel::add_scaled(dscore, queries.row(token) + part * width(), dkeys + key, width());
        });
    });
  }

  parameter<Scalar>& array() noexcept { return keys_; }
  const parameter<Scalar>& array() const noexcept { return keys_; }

private:
  index_t offset(index_t head, index_t key, index_t half) const noexcept {
    return ((head * keys() + key) * 2 + half) * width();
  }

  /// Where the query of one half of one head begins in a row.
  index_t query(index_t head, index_t half) const noexcept { return (half * heads() + head) * width(); }

  void compare(const Scalar* query, index_t apart, index_t tokens, index_t head, index_t half, Scalar* out) const {
    kernel::multiply_nt(tokens, keys(), width(), query, apart, keys_.data() + offset(head, 0, half), 2 * width(), out,
                        keys());
  }

  /// The c best keys of a half. In ascending order, so that the sums made from them stand in the order of the pairs,
  /// and the first of equal sums is the lowest pair.
  void find_candidates(tape& t, index_t token, index_t half, index_t c) const {
    const Scalar* row = t.similarity.row(token);
    index_t* best = t.candidates.row(token) + half * c;
    t.invalid[token] |= any_nan(row, keys());
    kernel::top_k(row, keys(), c, best);
    std::sort(best, best + c);
    for (index_t a = 0; a < c; ++a) t.halves(token, half * c + a) = row[best[a]];
  }

  void pair_up(tape& t, index_t token, index_t c, index_t k, index_t* pair, Scalar* scores) const {
    const index_t* best = t.candidates.row(token);
    const Scalar* halves = t.halves.row(token);
    Scalar* sums = t.sums.row(token);
    for (index_t a = 0; a < c; ++a)
      for (index_t b = 0; b < c; ++b) sums[a * c + b] = halves[a] + halves[c + b];
    kernel::top_k(sums, c * c, k, pair);
    for (index_t r = 0; r < k; ++r) {
      scores[r] = sums[pair[r]];
      pair[r] = best[pair[r] / c] * keys() + best[c + pair[r] % c];
    }
    t.invalid[token] |= any_nan(scores, k);  // of infinities of both signs
  }

  parameter<Scalar> keys_;
};

}  // namespace sluice::inline SLUICE_ISA
