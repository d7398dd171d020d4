/// The Sinkhorn coupling: exponentials of the logits, scaled by row and by column until both have the sums they should.
///
///   P[t,e] = exp(L[t,e] / epsilon + f[t] + g[e])      L the (noisy) logits of the group's n tokens
///   a round   columns  g[e] = log b - log(sum over t of exp(L[t,e] / epsilon + f[t]) + added)
///             rows     f[t] = log a - log(sum over e of exp(L[t,e] / epsilon + g[e]) + added)    in either order
///
/// f and g start at 0. It is the plan of entropic optimal transport: a shift of a column of L changes nothing, and that
/// is what balances the experts. All of it is done in logarithms, in which nothing overflows however peaked the logits
/// are; every round takes 2 n E exponentials. vmoe's 20 rounds are 40 for every pair, of which a softmax has one:
/// behind a gate of width 256 that is 5 to 10 times a top-k router, megatron's few rounds 2 to 4 times. Published
/// forms:
///
///               a     b     epsilon  order         rounds                                     other
///   vmoe        1     n/E   1        columns,rows  20                                         row sums are exact
///   megatron    1/n   1/E   1        rows,columns  until exp(g) moves by at most 1e-4 in mean    added = 1e-8
///   blackmamba  1/n   1/E   1/2      rows,columns  the same                                     balanced start
///   s_base      n     E     1        rows,columns  3        f and g are subtracted inside the rounds, added at the end
///
/// (The last is that of the released code; its sums are neither 1 nor balanced, and its entries may overflow.) Where
/// the stop is by a tolerance, `rounds` bounds their number, for the source may go on for ever.
///
/// Gradient, exact for a coupling that has converged (and meant for vmoe's form): with B that of P, a and b its sums by
/// row and by column, solve   a alpha + P beta = rows of (P * B) summed,   P^T alpha + b beta = columns of (P * B)
/// summed and dL += P * (B - alpha - beta) / epsilon; one beta is free and set to 0. Infinite logits count as +-1e30.
/// Cuturi 2013, arXiv:1306.0895; Clark et al. 2022 (S-BASE), arXiv:2202.01169; Anthony et al. 2024 (BlackMamba),
/// arXiv:2402.01771; Liu et al. 2024, arXiv:2401.15969.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/kernel/vector_math.hpp>
#include <sluice/router/assigned/coupling.hpp>
#include <sluice/router/weight_application.hpp>

#include <algorithm>
#include <cmath>

namespace sluice::inline SLUICE_ISA {

/// What the entries of a row and of a column are to add up to.
enum class sinkhorn_sums {
  tokens,  ///< 1 a token, n/E an expert
  one,     ///< 1 altogether: 1/n and 1/E
  counts,  ///< n and E
};

struct sinkhorn_options {
  double epsilon = 1;
  sinkhorn_sums sums = sinkhorn_sums::tokens;
  bool columns_first = true;
  index_t rounds = 20;
  double tolerance = 0;         ///< a round that moves exp(g) by no more, in mean, is the last; 0: none is
  double added = 0;             ///< to the sums that are divided by
  bool balanced_start = false;  ///< columns are scaled once before the first round, without `added`
  bool subtracts = false;       ///< f and g are subtracted in the rounds

  static sinkhorn_options vmoe() { return {}; }
  static sinkhorn_options megatron() {
    return {.sums = sinkhorn_sums::one, .columns_first = false, .rounds = 1000, .tolerance = 1e-4, .added = 1e-8};
  }
  static sinkhorn_options blackmamba() {
    sinkhorn_options o = megatron();
    o.epsilon = 0.5;
    o.balanced_start = true;
    return o;
  }
  static sinkhorn_options s_base() {
    return {.sums = sinkhorn_sums::counts, .columns_first = false, .rounds = 3, .subtracts = true};
  }
};

template <FloatOrDouble Scalar>
class sinkhorn_coupling {
public:
  static constexpr bool zero_is_a_choice = true;  // it is one that has underflowed

  struct tape {
    matrix_buffer<Scalar> coupling;  ///< P [T,E]
    buffer<Scalar> f;                ///< [n] of the last group
    buffer<Scalar> g;                ///< [E]
    index_t rounds = 0;              ///< that the last group took
    buffer<Scalar> before;           ///< scratch: g of the last round
    matrix_buffer<Scalar> rows;      ///< scratch: L / epsilon [n,E]
    matrix_buffer<Scalar> columns;   ///< scratch: its transpose
    matrix_buffer<Scalar> scaled;    ///< scratch: either of them and the other side's potentials
    matrix_buffer<double> system;    ///< scratch of backward [E,E]
    buffer<double> sums;             ///< scratch of backward: by row, its right side, then the same by column
  };

  /// Throws std::invalid_argument unless epsilon > 0, rounds >= 1, tolerance >= 0 and added >= 0.
  explicit sinkhorn_coupling(sinkhorn_options o = {}) : options_(o) {
    const auto is_number = [](double v) { return detail::is_usable(v) && v >= 0; };
    if (!is_number(o.epsilon) || o.epsilon == 0 || o.rounds < 1 || !is_number(o.tolerance) || !is_number(o.added))
      throw_invalid("a Sinkhorn coupling needs epsilon > 0, rounds >= 1, tolerance >= 0 and added >= 0, not ",
                    o.epsilon, ", ", o.rounds, ", ", o.tolerance, " and ", o.added);
  }

  /// Not those of s_base: nothing bounds them.
  bool can_weigh() const noexcept { return !options_.subtracts; }

  void reserve(const choice_call<Scalar>& call, tape& t) const {
    t.coupling.reserve(call.tokens, call.experts);
    t.f.reserve(call.tokens);
    for (auto* numbers : {&t.g, &t.before}) numbers->reserve(call.experts);
    for (auto* m : {&t.rows, &t.scaled}) m->reserve(call.tokens, call.experts);
    t.columns.reserve(call.experts, call.tokens);
    t.sums.reserve(2 * (call.tokens + call.experts));
    t.system.reserve(call.experts, call.experts);
  }

  void couple(const choice_batch<Scalar>& batch, tape& t) const {
    const auto n = static_cast<index_t>(batch.routable.size());
    const index_t experts = batch.experts;
    t.coupling.resize(batch.tokens, experts);
    fill(batch, t);
    const double tokens = static_cast<double>(n), all = static_cast<double>(experts);
    const bool is_whole = options_.sums == sinkhorn_sums::one, is_counts = options_.sums == sinkhorn_sums::counts;
    const double row_sum = is_whole ? 1 / tokens : is_counts ? tokens : 1;
    const double column_sum = is_whole ? 1 / all : is_counts ? all : tokens / all;
    t.f.assign(n, Scalar(0));
    t.g.assign(experts, Scalar(0));
    const auto scale_rows = [&] { scale(batch, t.rows, t.g, row_sum, options_.added, t.f, t); };
    const auto scale_columns = [&](double added) { scale(batch, t.columns, t.f, column_sum, added, t.g, t); };
    if (options_.balanced_start) scale_columns(0);
    t.rounds = 0;
    for (bool moves = true; moves && t.rounds < options_.rounds; ++t.rounds) {
      t.before = t.g;
      if (options_.columns_first) scale_columns(options_.added);
      scale_rows();
      if (!options_.columns_first) scale_columns(options_.added);
      moves = options_.tolerance == 0 || mean_change(t) > options_.tolerance;
    }
    for_rows(batch, n, experts, [&](index_t i) {
      Scalar* const entries = t.coupling.row(batch.routable[static_cast<std::size_t>(i)]);
      if (options_.columns_first && options_.added == 0) {
        // f is what normalises the row: done so, the sums are right also where f is so large that it says no more.
        kernel::transform(
            experts, [](const auto& l, const auto& g) { return l + g; }, entries, t.rows.row(i), t.g.data());
        kernel::softmax(entries, entries, experts);
        for (index_t e = 0; e < experts; ++e) entries[e] *= static_cast<Scalar>(row_sum);
      } else {
        for (index_t e = 0; e < experts; ++e) entries[e] = (t.rows(i, e) + t.f[i]) + t.g[e];
        exponentiate(entries, experts);
      }
    });
  }

  void backward(const choice_batch<Scalar>& batch, const matrix_buffer<Scalar>& dcoupling, tape& t,
                matrix_buffer<Scalar>& dlogits) const {
    const auto n = static_cast<index_t>(batch.routable.size());
    const index_t experts = batch.experts;
    t.sums.assign(2 * (n + experts), 0);
    double* const row_sum = t.sums.data();
    double* const row_side = row_sum + n;
    double* const column_sum = row_side + n;
    double* const beta = column_sum + experts;  // at first the right side of its system
    t.system.set_zero(experts, experts);
    for (index_t i = 0; i < n; ++i) {
      const index_t token = batch.routable[static_cast<std::size_t>(i)];
      const Scalar* const p = t.coupling.row(token);
      for (index_t e = 0; e < experts; ++e) {
        const auto entry = static_cast<double>(p[e]);
        row_sum[i] += entry;
        column_sum[e] += entry;
        const double product = entry * static_cast<double>(dcoupling(token, e));
        row_side[i] += product;
        beta[e] += product;
      }
      if (row_sum[i] == 0) continue;
      // With alpha eliminated: (diag(b) - P^T diag(1/a) P) beta = right side - P^T (row side / a).
      for (index_t e = 0; e < experts; ++e) {
        const double share = static_cast<double>(p[e]) / row_sum[i];
        beta[e] -= share * row_side[i];
        for (index_t j = 0; j <= e; ++j) t.system(e, j) -= share * static_cast<double>(p[j]);
      }
    }
    for (index_t e = 0; e < experts; ++e) t.system(e, e) += column_sum[e];
    solve(t.system, column_sum, beta);
    for_rows(batch, n, experts, [&](index_t i) {
      const index_t token = batch.routable[static_cast<std::size_t>(i)];
      const Scalar* const p = t.coupling.row(token);
      double alpha = row_side[i];
      for (index_t e = 0; e < experts; ++e) alpha -= static_cast<double>(p[e]) * beta[e];
      if (row_sum[i] != 0) alpha /= row_sum[i];
      for (index_t e = 0; e < experts; ++e)
        dlogits(token, e) += static_cast<Scalar>(static_cast<double>(p[e]) / options_.epsilon *
                                                 (static_cast<double>(dcoupling(token, e)) - alpha - beta[e]));
    });
  }

private:
  template <typename F>
  static void for_rows(const choice_batch<Scalar>& batch, index_t rows, index_t width, F&& f) {
    batch.context.executor.parallel_each(rows, 16 * width, f);
  }

  static void exponentiate(Scalar* v, index_t count) {
    const auto exponential = [](const auto& x) {
      using std::exp;
      return exp(x);
    };
    kernel::transform(count, exponential, v, static_cast<const Scalar*>(v));
  }

  void fill(const choice_batch<Scalar>& batch, tape& t) const {
    constexpr auto most = static_cast<Scalar>(1e30);
    const auto n = static_cast<index_t>(batch.routable.size());
    t.rows.resize(n, batch.experts);
    t.columns.resize(batch.experts, n);
    for (index_t i = 0; i < n; ++i) {
      const Scalar* const logits = batch.logits.row(batch.routable[static_cast<std::size_t>(i)]);
      for (index_t e = 0; e < batch.experts; ++e) {
        const auto l = logits[e] / static_cast<Scalar>(options_.epsilon);
        t.rows(i, e) = t.columns(e, i) = l < -most ? -most : l > most ? most : l;
      }
    }
  }

  /// own[r] = log sum - log(sum over c of exp(m[r,c] + other[c]) + added), for every row of m.
  void scale(const choice_batch<Scalar>& batch, const matrix_buffer<Scalar>& m, const buffer<Scalar>& other, double sum,
             double added, buffer<Scalar>& own, tape& t) const {
    t.scaled.resize(m.rows(), m.cols());
    const auto log_sum = static_cast<Scalar>(std::log(sum));
    const Scalar sign = options_.subtracts ? Scalar(-1) : Scalar(1);
    for_rows(batch, m.rows(), m.cols(), [&](index_t r) {
      Scalar* const row = t.scaled.row(r);
      for (index_t c = 0; c < m.cols(); ++c) row[c] = m(r, c) + sign * other[c];
      const Scalar exponents = kernel::log_sum_exp(row, m.cols());
      own[r] = log_sum - (added > 0 ? log_of_sum(exponents, static_cast<Scalar>(std::log(added))) : exponents);
    });
  }

  /// log(exp(a) + exp(b)).
  static Scalar log_of_sum(Scalar a, Scalar b) { return (std::max)(a, b) + std::log1p(std::exp(-(std::abs)(a - b))); }

  static double mean_change(const tape& t) {
    constexpr double most = 700;  // beyond it exp() is infinite, and so is any change
    double change = 0;
    for (index_t e = 0; e < t.g.size(); ++e)
      change += (std::abs)(std::exp((std::min)(static_cast<double>(t.g[e]), most)) -
                           std::exp((std::min)(static_cast<double>(t.before[e]), most)));
    return change / static_cast<double>(t.g.size());
  }

  /// Cholesky on the lower triangle, in place. The matrix is singular by one constant, or by one for every set of
  /// experts that shares no token with others: such an unknown is set to 0.
  static void solve(matrix_buffer<double>& m, const double* size, double* x) {
    constexpr double smallest = 1e-10;
    const index_t count = m.rows();
    for (index_t c = 0; c < count; ++c) {
      for (index_t j = 0; j < c; ++j) m(c, c) -= m(c, j) * m(c, j);
      const bool is_free = c == 0 || !(m(c, c) > smallest * size[c]);
      m(c, c) = is_free ? 0 : std::sqrt(m(c, c));
      for (index_t r = c + 1; r < count; ++r) {
        for (index_t j = 0; j < c; ++j) m(r, c) -= m(r, j) * m(c, j);
        m(r, c) = is_free ? 0 : m(r, c) / m(c, c);
      }
    }
    for (index_t r = 0; r < count; ++r) {
      for (index_t j = 0; j < r; ++j) x[r] -= m(r, j) * x[j];
      x[r] = m(r, r) == 0 ? 0 : x[r] / m(r, r);
    }
    for (index_t r = count; r-- > 0;) {
      for (index_t j = r + 1; j < count; ++j) x[r] -= m(j, r) * x[j];
      x[r] = m(r, r) == 0 ? 0 : x[r] / m(r, r);
    }
  }

  sinkhorn_options options_;
};

static_assert(DifferentiableCoupling<sinkhorn_coupling<float>, float>);

}  // namespace sluice::inline SLUICE_ISA
