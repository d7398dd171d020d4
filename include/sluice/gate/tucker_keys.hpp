/// Tucker product keys: the k best of n² pairs of keys, each scored by small matrices between r numbers of its halves.
///
///   queries [T, 2d], halves; one query for all heads     keys [heads, 2, n·r, d], the r vectors of key i from row i r on
///   q = norm(query half),  K[h,half,i,a] = norm(row)
///   S1[i,a] = <q1, K[h,0,i,a]>,  S2[j,b] = <q2, K[h,1,j,b]>
///   score_m(i n + j) = sum over a, b of S1[i,a] C[m,h,a,b] S2[j,b]                           gate/tucker_cores.hpp
///
/// Search: rows with the c largest S1 u and columns with the c largest S2 v, (u, v) the leading singular vectors of the
/// sum of the cores, which makes of it the nearest matrix of rank one; of their c² pairs the k of the largest sum of
/// scores over m. Where cores have more than one singular value that counts the search is not exact; their penalty
/// pulls the others down. Equal sums: the lower pair; NaN counts as -infinity. Gradient: that of the scores of chosen
/// pairs, all M, goes to keys, cores, norms and queries.
/// A call reads all keys, and takes their norm anew: about as much again as the search of one token. folded() are the
/// same keys with the norm taken once and for all, to infer with. Initial values: keys normal with deviation 1/sqrt(d).
/// Huang et al. 2024, "Ultra-Sparse Memory Network", arXiv:2411.12364, which keeps a key as (d, r).
#pragma once

#include <sluice/core/checked_size.hpp>
#include <sluice/core/choices.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/gate/tucker_cores.hpp>
#include <sluice/kernel/gemm.hpp>
#include <sluice/kernel/linear.hpp>
#include <sluice/kernel/row_norm.hpp>
#include <sluice/kernel/top_k.hpp>

#include <algorithm>
#include <cmath>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar, RowNorm QueryNorm = rms_norm<Scalar>, RowNorm KeyNorm = QueryNorm>
class tucker_keys {
public:
  using scalar = Scalar;

  struct tape {
    matrix_buffer<Scalar> queries;      ///< [T, 2d] normalised
    matrix_buffer<Scalar> unit_keys;    ///< [heads·2·n·r, d] normalised; empty where the norm changes nothing
    matrix_buffer<Scalar> similarity;   ///< [T, n·r] scratch: one half of one head
    matrix_buffer<Scalar> ranks;        ///< [T, n] scratch: by what the candidates of a half are chosen
    matrix_buffer<index_t> candidates;  ///< [T, 2c] scratch
    matrix_buffer<Scalar> halves;       ///< [T, 2·c·r] scratch: their similarities
    matrix_buffer<Scalar> sums;         ///< [T, c²] scratch
    buffer<std::uint8_t> invalid;       ///< [T] 1 where a similarity or a score was NaN
    typename QueryNorm::tape query_norm;
    typename KeyNorm::tape key_norm;
    matrix_buffer<Scalar> dqueries, dunit_keys;
    matrix_buffer<Scalar> products;  ///< [T or heads, 4r] scratch: S1, S2 of a choice and their gradients
  };

  /// Throws std::invalid_argument unless every count is at least 1 and norms are for rows of width d.
  tucker_keys(index_t heads, index_t keys, index_t width, index_t rank, index_t cores, QueryNorm query_norm,
              KeyNorm key_norm)
      : query_norm_(std::move(query_norm)), key_norm_(std::move(key_norm)), cores_(cores, heads, rank) {
    if (keys < 1 || width < 1) throw_invalid("Tucker keys need n, d >= 1, not ", keys, ", ", width);
    check_norm_width("tucker_keys", query_norm_, width);
    check_norm_width("tucker_keys", key_norm_, width);
    keys_ = {{heads, 2, checked_product(keys, rank), width},
             parameter_role::weight,
             initial_values::normal(1 / std::sqrt(static_cast<double>(width)))};
  }

  index_t heads() const noexcept { return keys_.shape()[0]; }
  index_t keys() const noexcept { return keys_.shape()[2] / rank(); }
  index_t width() const noexcept { return keys_.shape()[3]; }
  index_t rank() const noexcept { return cores_.rank(); }
  index_t cores() const noexcept { return cores_.cores(); }
  index_t pairs() const noexcept { return keys() * keys(); }

  /// Throws std::invalid_argument unless 1 <= k <= c² and c <= n.
  void validate(index_t k, index_t c) const {
    if (k < 1 || c < 1 || c > keys() || c * c < k)
      throw_invalid("Tucker keys need c <= n candidates with c * c >= k >= 1, not c = ", c, " with n = ", keys(),
                    ", k = ", k);
  }

  /// pair [T, heads·k], best first in every head, and scores [T, heads·k·M], those of a pair together.
  void search(const matrix_buffer<Scalar>& queries, index_t k, index_t c, matrix_buffer<index_t>& pair,
              matrix_buffer<Scalar>& scores, tape& t, const executor_ref& executor) const {
    const index_t tokens = queries.rows(), r = rank();
    normalize(queries, t, executor);
    const Scalar* unit = unit_keys(t);
    pair.resize(tokens, heads() * k);
    scores.resize(tokens, heads() * k * cores());
    t.similarity.resize(tokens, keys() * r);
    t.ranks.resize(tokens, keys());
    t.candidates.resize(tokens, 2 * c);
    t.halves.resize(tokens, 2 * c * r);
    t.sums.resize(tokens, c * c);
    t.products.resize((std::max)(tokens, heads()), 4 * r);
    t.invalid.assign(tokens, 0);
    const index_t block = detail::rows_per_reading<Scalar>(tokens, width(), executor);
    executor.parallel_blocks(tokens, block, heads() * keys() * width() * r, [&](index_t begin, index_t end) {
      for (index_t h = 0; h < heads(); ++h) {
        for (index_t half = 0; half < 2; ++half) {
          kernel::multiply_nt(end - begin, keys() * r, width(), t.queries.row(begin) + half * width(), 2 * width(),
                              unit + row_of(h, half, 0) * width(), width(), t.similarity.row(begin), keys() * r);
          for (index_t token = begin; token < end; ++token) find_candidates(t, token, h, half, c);
        }
        for (index_t token = begin; token < end; ++token)
          pair_up(t, token, h, c, k, pair.row(token) + h * k, scores.row(token) + h * k * cores());
      }
    });
  }

  /// dscores [T, heads·k·M] -> gradients of the parameters, added, and dqueries [T, 2d]. A pair without expert
  /// (no_expert) has none.
  void backward(const matrix_buffer<Scalar>& queries, const matrix_buffer<index_t>& pair,
                const matrix_buffer<Scalar>& dscores, matrix_buffer<Scalar>& dqueries, tape& t,
                const executor_ref& executor) {
    const index_t tokens = queries.rows(), k = pair.cols() / heads(), d = width();
    const Scalar* unit = unit_keys(t);
    t.dqueries.set_zero(tokens, 2 * d);
    t.dunit_keys.set_zero(key_rows(), d);
    executor.parallel_each(tokens, 4 * pair.cols() * rank() * d, [&](index_t token) {
      for (index_t c = 0; c < pair.cols(); ++c)
        for_choice(t, pair, dscores, token, c, t.products.row(token), [&](index_t half, index_t row, Scalar ds) {
          kernel::add_scaled(ds, unit + row * d, t.dqueries.row(token) + half * d, d);
        });
    });
    Scalar* dcore = cores_.array().gradient().data();
    executor.for_work(4 * tokens * pair.cols() * rank() * d).parallel_for(heads(), [&](index_t h) {
      Scalar* s = t.products.row(h);
      for (index_t token = 0; token < tokens; ++token)
        for (index_t c = h * k; c < (h + 1) * k; ++c) {
          if (pair(token, c) == no_expert) continue;
          for_choice(t, pair, dscores, token, c, s, [&](index_t half, index_t row, Scalar ds) {
            kernel::add_scaled(ds, t.queries.row(token) + half * d, t.dunit_keys.row(row), d);
          });
          cores_.add_gradient(h, s, s + rank(), dscores.row(token) + c * cores(), dcore);
        }
    });
    // Halves of queries are rows of their own, as vectors of keys are.
    dqueries.set_zero(tokens, 2 * d);
    query_norm_.backward(const_matrix_map<Scalar>(queries.data(), 2 * tokens, d),
                         matrix_map<Scalar>(t.dqueries.data(), 2 * tokens, d), t.query_norm,
                         matrix_map<Scalar>(dqueries.data(), 2 * tokens, d), executor, 0);
    key_norm_.backward(rows(), t.dunit_keys.map(), t.key_norm,
                       matrix_map<Scalar>(keys_.gradient().data(), key_rows(), d), executor, 0);
  }

  /// The same keys with their norm taken, which are searched with the same bits: for inference.
  auto folded() const {
    tucker_keys<Scalar, QueryNorm, no_norm<Scalar>> other(heads(), keys(), width(), rank(), cores(), query_norm_,
                                                          no_norm<Scalar>(width()));
    typename KeyNorm::tape scratch;
    key_norm_.forward(rows(), matrix_map<Scalar>(other.array().data(), key_rows(), width()), scratch, executor_ref());
    other.tucker() = cores_;
    return other;
  }

  /// coefficient × value of the cores' penalty; adds coefficient × gradient to theirs.
  double core_penalty(double coefficient, double margin = 0.15) { return cores_.penalty(coefficient, margin); }
  /// u and v become the leading singular vectors of the summed cores as they are now.
  void update_vectors() { cores_.update(); }

  parameter<Scalar>& array() noexcept { return keys_; }
  tucker_cores<Scalar>& tucker() noexcept { return cores_; }
  parameter<Scalar>& core() noexcept { return cores_.array(); }
  parameter<Scalar>& row_vectors() noexcept { return cores_.row_vectors(); }
  parameter<Scalar>& column_vectors() noexcept { return cores_.column_vectors(); }
  QueryNorm& query_norm() noexcept { return query_norm_; }
  KeyNorm& key_norm() noexcept { return key_norm_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("keys", self.keys_);
    tucker_cores<Scalar>::visit_parameters(self.cores_, visit);
    if constexpr (HasParameters<QueryNorm>) visit("query_norm", self.query_norm_);
    if constexpr (HasParameters<KeyNorm>) visit("key_norm", self.key_norm_);
  }

private:
  /// Of the vectors of key i the first.
  index_t row_of(index_t head, index_t half, index_t key) const noexcept {
    return ((head * 2 + half) * keys() + key) * rank();
  }
  index_t key_rows() const noexcept { return heads() * 2 * keys() * rank(); }
  const_matrix_map<Scalar> rows() const { return {keys_.data(), key_rows(), width()}; }
  const Scalar* unit_keys(const tape& t) const {
    return leaves_rows<KeyNorm> ? keys_.data() : t.unit_keys.data();
  }

  void normalize(const matrix_buffer<Scalar>& queries, tape& t, const executor_ref& executor) const {
    const index_t halves = 2 * queries.rows();
    t.queries.resize(queries.rows(), 2 * width());
    query_norm_.forward(const_matrix_map<Scalar>(queries.data(), halves, width()),
                        matrix_map<Scalar>(t.queries.data(), halves, width()), t.query_norm, executor);
    if (leaves_rows<KeyNorm>) return;
    t.unit_keys.resize(key_rows(), width());
    key_norm_.forward(rows(), t.unit_keys.map(), t.key_norm, executor);
  }

  /// The c best keys of a half, ascending, with their similarities.
  void find_candidates(tape& t, index_t token, index_t head, index_t half, index_t c) const {
    const Scalar* s = t.similarity.row(token);
    const Scalar* lead = cores_.leading(head, half);
    const index_t r = rank();
    Scalar* ranks = t.ranks.row(token);
    t.invalid[token] |= any_nan(s, keys() * r);
    for (index_t i = 0; i < keys(); ++i) ranks[i] = kernel::dot(s + i * r, lead, r);
    index_t* best = t.candidates.row(token) + half * c;
    kernel::top_k(ranks, keys(), c, best);
    std::sort(best, best + c);
    for (index_t a = 0; a < c; ++a)
      std::copy_n(s + best[a] * r, r, t.halves.row(token) + (half * c + a) * r);
  }

  void pair_up(tape& t, index_t token, index_t head, index_t c, index_t k, index_t* pair, Scalar* scores) const {
    const index_t r = rank();
    const index_t* best = t.candidates.row(token);
    const auto s1 = [&](index_t a) { return t.halves.row(token) + a * r; };
    const auto s2 = [&](index_t b) { return t.halves.row(token) + (c + b) * r; };
    Scalar* sums = t.sums.row(token);
    for (index_t a = 0; a < c; ++a)
      for (index_t b = 0; b < c; ++b) sums[a * c + b] = cores_.summed_score(head, s1(a), s2(b));
    kernel::top_k(sums, c * c, k, pair);
    for (index_t i = 0; i < k; ++i) {
      const index_t a = pair[i] / c, b = pair[i] % c;
      for (index_t m = 0; m < cores(); ++m) scores[i * cores() + m] = cores_.score(m, head, s1(a), s2(b));
      pair[i] = best[a] * keys() + best[c + b];
    }
    t.invalid[token] |= any_nan(scores, k * cores());
  }

  /// f(half, row of the keys, gradient of its similarity) for the 2r vectors of a choice; s [4r] begins with their
  /// similarities.
  template <typename F>
  void for_choice(const tape& t, const matrix_buffer<index_t>& pair, const matrix_buffer<Scalar>& dscores,
                  index_t token, index_t choice, Scalar* s, F&& f) const {
    if (pair(token, choice) == no_expert) return;
    const index_t r = rank(), head = choice / (pair.cols() / heads());
    const index_t first[2] = {row_of(head, 0, pair(token, choice) / keys()),
                              row_of(head, 1, pair(token, choice) % keys())};
    for (index_t i = 0; i < 2 * r; ++i)
      s[i] = kernel::dot(t.queries.row(token) + i / r * width(), unit_keys(t) + (first[i / r] + i % r) * width(),
                         width());
    Scalar* ds = s + 2 * r;
    cores_.backward(head, s, s + r, dscores.row(token) + choice * cores(), ds, ds + r);
    for (index_t i = 0; i < 2 * r; ++i) f(i / r, first[i / r] + i % r, ds[i]);
  }

  QueryNorm query_norm_;
  KeyNorm key_norm_;
  parameter<Scalar> keys_;
  tucker_cores<Scalar> cores_;
};

}  // namespace sluice::inline SLUICE_ISA
