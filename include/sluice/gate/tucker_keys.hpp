/// Tucker product keys: the k best of n² pairs of keys, each scored by small matrices between r numbers of its halves.
///
///   queries [T, 2d], halves; one query for all heads     keys [heads, 2, n, d·r] as (d, r)     core C [M, heads, r, r]
///   q = norm(query half),  K[h,half,i,:,a] = norm(key over its d numbers)
///   S1[i,a] = <q1, K[h,0,i,:,a]>,  S2[j,b] = <q2, K[h,1,j,:,b]>
///   score_m(i n + j) = sum over a, b of S1[i,a] C[m,h,a,b] S2[j,b]
///
/// Search: rows with the c largest S1 u and columns with the c largest S2 v, (u, v) the leading singular vectors of the
/// sum of the cores, which makes of it the nearest matrix of rank one; of their c² pairs the k of the largest sum of
/// scores over m. Where cores have more than one singular value that counts the search is not exact; core_penalty pulls
/// the others down: value = mean over heads and the singular values s after the first of max(s - margin, 0)^2.
/// u and v are states [heads, r]; update_vectors() makes them anew, the sum of u positive. Equal sums: the lower pair;
/// NaN counts as -infinity. Gradient: that of the scores of chosen pairs, all M, goes to keys, cores, norms and
/// queries. Initial values: keys normal with deviation 1/sqrt(d), cores 1/r. Huang et al. 2024, "Ultra-Sparse Memory
/// Network", arXiv:2411.12364.
#pragma once

#include <sluice/core/choices.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/kernel/gemm.hpp>
#include <sluice/kernel/row_norm.hpp>
#include <sluice/kernel/small_svd.hpp>
#include <sluice/kernel/top_k.hpp>

#include <algorithm>
#include <cmath>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar, RowNorm Norm = rms_norm<Scalar>>
class tucker_keys {
public:
  using scalar = Scalar;

  struct tape {
    matrix_buffer<Scalar> queries;      ///< [T, 2d] normalised
    matrix_buffer<Scalar> key_rows;     ///< [heads·2·n·r, d] the keys, a vector a row
    matrix_buffer<Scalar> unit_keys;    ///< the same normalised
    matrix_buffer<Scalar> similarity;   ///< [T, n·r] scratch: one half of one head
    matrix_buffer<Scalar> ranks;        ///< [T, n] scratch: by what the candidates of a half are chosen
    matrix_buffer<index_t> candidates;  ///< [T, 2c] scratch
    matrix_buffer<Scalar> halves;       ///< [T, 2·c·r] scratch: their similarities
    matrix_buffer<Scalar> sums;         ///< [T, c²] scratch
    buffer<std::uint8_t> invalid;       ///< [T] 1 where a similarity or a score was NaN
    typename Norm::tape query_norm, key_norm;
    matrix_buffer<Scalar> dqueries, dunit_keys, dkey_rows;
    matrix_buffer<Scalar> products;  ///< [T or heads, 2r] scratch
  };

  /// Throws std::invalid_argument unless every count is at least 1.
  tucker_keys(index_t heads, index_t keys, index_t width, index_t rank, index_t cores, Norm query_norm, Norm key_norm)
      : width_(width), rank_(rank), query_norm_(std::move(query_norm)), key_norm_(std::move(key_norm)) {
    if (heads < 1 || keys < 1 || width < 1 || rank < 1 || cores < 1)
      throw_invalid("Tucker keys need heads, n, d, r, M >= 1, not ", heads, ", ", keys, ", ", width, ", ", rank, ", ",
                    cores);
    keys_ = {{heads, 2, keys, width * rank},
             parameter_role::weight,
             initial_values::normal(1 / std::sqrt(static_cast<double>(width)))};
    core_ = {{cores, heads, rank, rank}, parameter_role::weight, initial_values::normal(1 / static_cast<double>(rank))};
    u_ = {{heads, rank}, parameter_role::state, initial_values::constant(1 / std::sqrt(static_cast<double>(rank)))};
    v_ = u_;
  }

  index_t heads() const noexcept { return keys_.shape()[0]; }
  index_t keys() const noexcept { return keys_.shape()[2]; }
  index_t width() const noexcept { return width_; }
  index_t rank() const noexcept { return rank_; }
  index_t cores() const noexcept { return core_.shape()[0]; }
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
    const index_t tokens = queries.rows(), r = rank_;
    normalize(queries, t, executor);
    pair.resize(tokens, heads() * k);
    scores.resize(tokens, heads() * k * cores());
    t.similarity.resize(tokens, keys() * r);
    t.ranks.resize(tokens, keys());
    t.candidates.resize(tokens, 2 * c);
    t.halves.resize(tokens, 2 * c * r);
    t.sums.resize(tokens, c * c);
    t.products.resize((std::max)(tokens, heads()), 2 * r);
    t.invalid.assign(tokens, 0);
    executor.parallel_blocks(tokens, token_block, heads() * keys() * width_ * r, [&](index_t begin, index_t end) {
      for (index_t h = 0; h < heads(); ++h) {
        for (index_t half = 0; half < 2; ++half) {
          kernel::multiply_nt(end - begin, keys() * r, width_, t.queries.row(begin) + half * width_, 2 * width_,
                              t.unit_keys.row(row_of(h, half, 0)), width_, t.similarity.row(begin), keys() * r);
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
    const index_t tokens = queries.rows(), k = pair.cols() / heads(), r = rank_;
    t.dqueries.set_zero(tokens, 2 * width_);
    t.dunit_keys.set_zero(t.unit_keys.rows(), width_);
    Scalar* dcore = core_.gradient().data();
    executor.parallel_blocks(tokens, token_block, 4 * pair.cols() * r * width_, [&](index_t begin, index_t end) {
      for (index_t token = begin; token < end; ++token)
        for (index_t c = 0; c < pair.cols(); ++c)
          for_choice(t, pair, dscores, token, c, t.products.row(token), nullptr,
                     [&](index_t half, index_t row, Scalar d) {
                       kernel::add_scaled(d, t.unit_keys.row(row), t.dqueries.row(token) + half * width_, width_);
                     });
    });
    executor.for_work(4 * tokens * pair.cols() * r * width_).parallel_for(heads(), [&](index_t h) {
      for (index_t token = 0; token < tokens; ++token)
        for (index_t c = h * k; c < (h + 1) * k; ++c)
          for_choice(t, pair, dscores, token, c, t.products.row(h), dcore, [&](index_t half, index_t row, Scalar d) {
            kernel::add_scaled(d, t.queries.row(token) + half * width_, t.dunit_keys.row(row), width_);
          });
    });
    // Halves of queries are rows of their own, as keys are.
    const index_t halves = 2 * tokens;
    dqueries.set_zero(tokens, 2 * width_);
    query_norm_.backward(const_matrix_map<Scalar>(queries.data(), halves, width_), as_rows(t.dqueries, halves),
                         t.query_norm, matrix_map<Scalar>(dqueries.data(), halves, width_), executor, 0);
    t.dkey_rows.set_zero(t.key_rows.rows(), width_);
    key_norm_.backward(t.key_rows.map(), t.dunit_keys.map(), t.key_norm, t.dkey_rows.map(), executor, 0);
    Scalar* dkeys = keys_.gradient().data();
    for (index_t row = 0; row < t.key_rows.rows(); ++row)
      for (index_t d = 0; d < width_; ++d) dkeys[(row / r * width_ + d) * r + row % r] += t.dkey_rows(row, d);
  }

  /// coefficient × value of the core penalty; adds coefficient × gradient to that of the cores.
  double core_penalty(double coefficient, double margin = 0.15) {
    const index_t r = rank_;
    if (r < 2) return 0;
    const double share = coefficient / static_cast<double>(heads() * (r - 1));
    double value = 0;
    for (index_t h = 0; h < heads(); ++h) {
      const kernel::small_svd svd(summed_core(h));
      for (index_t i = 1; i < r; ++i) {
        const double over = svd.s(i, 0) - margin;
        if (!(over > 0)) continue;
        value += share * over * over;
        for (index_t m = 0; m < cores(); ++m)
          for (index_t a = 0; a < r; ++a)
            for (index_t b = 0; b < r; ++b)
              core_.gradient()[as_size(((m * heads() + h) * r + a) * r + b)] +=
                  static_cast<Scalar>(2 * share * over * svd.u(a, i) * svd.v(b, i));
      }
    }
    return value;
  }

  /// u and v become the leading singular vectors of the summed cores as they are now.
  void update_vectors() {
    for (index_t h = 0; h < heads(); ++h) {
      const kernel::small_svd svd(summed_core(h));
      const double sign = svd.u.col(0).sum() < 0 ? -1 : 1;
      for (index_t a = 0; a < rank_; ++a) {
        u_.data()[h * rank_ + a] = static_cast<Scalar>(sign * svd.u(a, 0));
        v_.data()[h * rank_ + a] = static_cast<Scalar>(sign * svd.v(a, 0));
      }
    }
  }

  parameter<Scalar>& array() noexcept { return keys_; }
  parameter<Scalar>& core() noexcept { return core_; }
  parameter<Scalar>& row_vectors() noexcept { return u_; }
  parameter<Scalar>& column_vectors() noexcept { return v_; }
  Norm& query_norm() noexcept { return query_norm_; }
  Norm& key_norm() noexcept { return key_norm_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("keys", self.keys_);
    visit("core", self.core_);
    visit("u", self.u_);
    visit("v", self.v_);
    if constexpr (HasParameters<Norm>) {
      visit("query_norm", self.query_norm_);
      visit("key_norm", self.key_norm_);
    }
  }

private:
  static constexpr index_t token_block = 32;

  /// Of the vectors of key i the first.
  index_t row_of(index_t head, index_t half, index_t key) const noexcept {
    return ((head * 2 + half) * keys() + key) * rank_;
  }
  const Scalar* core_of(index_t m, index_t head) const { return core_.data() + (m * heads() + head) * rank_ * rank_; }
  matrix<double> summed_core(index_t head) const {
    matrix<double> sum = matrix<double>::Zero(rank_, rank_);
    for (index_t m = 0; m < cores(); ++m)
      sum += const_matrix_map<Scalar>(core_of(m, head), rank_, rank_).template cast<double>();
    return sum;
  }
  static matrix_map<Scalar> as_rows(matrix_buffer<Scalar>& m, index_t rows) {
    return {m.data(), rows, rows == 0 ? 0 : m.size() / rows};
  }

  void normalize(const matrix_buffer<Scalar>& queries, tape& t, const executor_ref& executor) const {
    const index_t halves = 2 * queries.rows();
    t.queries.resize(queries.rows(), 2 * width_);
    query_norm_.forward(const_matrix_map<Scalar>(queries.data(), halves, width_),
                        matrix_map<Scalar>(t.queries.data(), halves, width_), t.query_norm, executor);
    t.key_rows.resize(heads() * 2 * keys() * rank_, width_);
    t.unit_keys.resize(t.key_rows.rows(), width_);
    for (index_t row = 0; row < t.key_rows.rows(); ++row)
      for (index_t d = 0; d < width_; ++d)
        t.key_rows(row, d) = keys_.data()[(row / rank_ * width_ + d) * rank_ + row % rank_];
    key_norm_.forward(t.key_rows.map(), t.unit_keys.map(), t.key_norm, executor);
  }

  /// The c best keys of a half, ascending, with their similarities.
  void find_candidates(tape& t, index_t token, index_t head, index_t half, index_t c) const {
    const Scalar* s = t.similarity.row(token);
    const Scalar* lead = (half == 0 ? u_ : v_).data() + head * rank_;
    Scalar* ranks = t.ranks.row(token);
    t.invalid[token] |= any_nan(s, keys() * rank_);
    for (index_t i = 0; i < keys(); ++i) ranks[i] = kernel::dot(s + i * rank_, lead, rank_);
    index_t* best = t.candidates.row(token) + half * c;
    kernel::top_k(ranks, keys(), c, best);
    std::sort(best, best + c);
    for (index_t a = 0; a < c; ++a)
      std::copy_n(s + best[a] * rank_, rank_, t.halves.row(token) + (half * c + a) * rank_);
  }

  Scalar score(index_t m, index_t head, const Scalar* s1, const Scalar* s2) const {
    const Scalar* core = core_of(m, head);
    Scalar sum = 0;
    for (index_t a = 0; a < rank_; ++a) sum += s1[a] * kernel::dot(core + a * rank_, s2, rank_);
    return sum;
  }

  void pair_up(tape& t, index_t token, index_t head, index_t c, index_t k, index_t* pair, Scalar* scores) const {
    const index_t* best = t.candidates.row(token);
    const auto s1 = [&](index_t a) { return t.halves.row(token) + a * rank_; };
    const auto s2 = [&](index_t b) { return t.halves.row(token) + (c + b) * rank_; };
    Scalar* sums = t.sums.row(token);
    for (index_t a = 0; a < c; ++a)
      for (index_t b = 0; b < c; ++b) {
        sums[a * c + b] = 0;
        for (index_t m = 0; m < cores(); ++m) sums[a * c + b] += score(m, head, s1(a), s2(b));
      }
    kernel::top_k(sums, c * c, k, pair);
    for (index_t i = 0; i < k; ++i) {
      const index_t a = pair[i] / c, b = pair[i] % c;
      for (index_t m = 0; m < cores(); ++m) scores[i * cores() + m] = score(m, head, s1(a), s2(b));
      pair[i] = best[a] * keys() + best[c + b];
    }
    t.invalid[token] |= any_nan(scores, k * cores());
  }

  /// f(half, row of the keys, gradient of its similarity) for the 2r vectors of a choice; dcore, if any, gets its part.
  template <typename F>
  void for_choice(const tape& t, const matrix_buffer<index_t>& pair, const matrix_buffer<Scalar>& dscores,
                  index_t token, index_t choice, Scalar* s, Scalar* dcore, F&& f) const {
    if (pair(token, choice) == no_expert) return;
    const index_t r = rank_, head = choice / (pair.cols() / heads());
    const index_t rows[2] = {row_of(head, 0, pair(token, choice) / keys()),
                             row_of(head, 1, pair(token, choice) % keys())};
    for (index_t half = 0; half < 2; ++half)
      for (index_t a = 0; a < r; ++a)
        s[half * r + a] = kernel::dot(t.queries.row(token) + half * width_, t.unit_keys.row(rows[half] + a), width_);
    for (index_t a = 0; a < r; ++a) {
      Scalar first = 0, second = 0;  // of S1[a] and S2[a]
      for (index_t m = 0; m < cores(); ++m) {
        const Scalar d = dscores(token, choice * cores() + m);
        const Scalar* core = core_of(m, head);
        for (index_t b = 0; b < r; ++b) {
          first += d * core[a * r + b] * s[r + b];
          second += d * core[b * r + a] * s[b];
          if (dcore != nullptr) dcore[((m * heads() + head) * r + a) * r + b] += d * s[a] * s[r + b];
        }
      }
      f(0, rows[0] + a, first);
      f(1, rows[1] + a, second);
    }
  }

  index_t width_;
  index_t rank_;
  Norm query_norm_, key_norm_;
  parameter<Scalar> keys_;
  parameter<Scalar> core_;
  parameter<Scalar> u_, v_;
};

}  // namespace sluice::inline SLUICE_ISA
