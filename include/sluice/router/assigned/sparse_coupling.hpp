/// Sparsity-constrained transport: a coupling with few entries a column, or a row, by quadratically regularised
/// transport.
///
///   S = softmax of the logits [n,E];  every token has mass 1, every expert n/E
///   per expert   potentials a [n]:   column e of P = (n/E) project(the m largest of (a + S[:,e]) / (gamma n/E))
///   per token    potentials a [E]:   row t of P    = project(the m largest of (a + S[t,:]) / gamma)
///   project: to the nearest point of the simplex, of those entries; every other entry is 0
///
/// The potentials ascend the semi-dual of the transport problem by `steps` steps of Adam (0.9, 0.999, 1e-8) from 0,
/// along what tokens, or experts, still have too little of: the sums of P over the constrained side are exact, those
/// over the other only nearly right after so few steps, and the problem is not convex: P is a choice, and no weight. m
/// is a capacity limit's number, or k in token choice. With m = n, or E, it is plain quadratically regularised
/// transport.
///
/// Token choice never takes an entry that is 0, expert choice does, the lowest tokens first. Equal numbers: the lower
/// expert or token. All numbers are made in the scalar, for every column or row on its own, in one order: equal bits
/// for any thread count. A step costs n E and a selection of m from each column or row, where a top-k router selects
/// once: with 20 steps 4 to 10 times as much, and more where m is large. Liu, Puigcerver, Blondel 2023,
/// "Sparsity-Constrained Optimal Transport", arXiv:2209.15466; Liu et al. 2024, arXiv:2401.15969.
#pragma once

#include <sluice/capacity/capacity_limit.hpp>
#include <sluice/core/buffer.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/kernel/top_k.hpp>
#include <sluice/router/assigned/coupling.hpp>

#include <algorithm>
#include <cmath>
#include <utility>

namespace sluice::inline SLUICE_ISA {

struct sparse_coupling_options {
  double gamma = 1;
  index_t steps = 20;
  double learning_rate = 1e-2;
};

namespace detail {

/// v[0 .. count), which descend, to the nearest point of the simplex.
template <typename Scalar>
void project_to_simplex(Scalar* v, index_t count) {
  Scalar sum = 0, shift = 0;
  for (index_t i = 0; i < count; ++i) {
    sum += v[i];
    const Scalar now = (sum - 1) / static_cast<Scalar>(i + 1);
    if (!(v[i] > now)) break;
    shift = now;
  }
  for (index_t i = 0; i < count; ++i) v[i] = (std::max)(v[i] - shift, Scalar(0));
}

/// Adam's state for the potentials of one group.
template <typename Scalar>
struct ascent {
  buffer<Scalar> potential;
  buffer<Scalar> mean;
  buffer<Scalar> square;

  void reserve(index_t count) {
    for (auto* numbers : {&potential, &mean, &square}) numbers->reserve(count);
  }
  void reset(index_t count) {
    for (auto* numbers : {&potential, &mean, &square}) numbers->assign(count, Scalar(0));
  }
  /// One step, the index-th from 1, down the gradient g(i).
  template <typename Gradient>
  void step(index_t index, double rate, Gradient g) {
    const auto b1 = static_cast<Scalar>(1 - std::pow(0.9, static_cast<double>(index)));
    const auto b2 = static_cast<Scalar>(1 - std::pow(0.999, static_cast<double>(index)));
    for (index_t i = 0; i < potential.size(); ++i) {
      const Scalar now = g(i);
      mean[i] = Scalar(0.9) * mean[i] + Scalar(0.1) * now;
      square[i] = Scalar(0.999) * square[i] + Scalar(0.001) * now * now;
      potential[i] -= static_cast<Scalar>(rate) * (mean[i] / b1) / (std::sqrt(square[i] / b2) + Scalar(1e-8));
    }
  }
};

/// What a coupling keeps of lines of scores, the experts' or the tokens': each has at most m entries.
template <FloatOrDouble Scalar>
struct sparse_lines {
  matrix_buffer<Scalar> coupling;  ///< P [T,E]
  detail::ascent<Scalar> ascent;   ///< of the last group, potentials of what lies across the lines
  matrix_buffer<Scalar> scores;    ///< scratch [lines, length]: S, or S transposed
  matrix_buffer<Scalar> shifted;   ///< scratch [lines, length]
  matrix_buffer<index_t> ids;      ///< scratch [lines, m]: where a line's entries are
  matrix_buffer<Scalar> entries;   ///< scratch [lines, m]
  buffer<Scalar> sums;             ///< scratch [length]: of the entries across the lines

  void reserve(index_t tokens, index_t experts, index_t lines, index_t length) {
    coupling.reserve(tokens, experts);
    ascent.reserve(length);
    for (auto* m : {&scores, &shifted, &entries}) m->reserve(lines, length);
    ids.reserve(lines, length);
    sums.reserve(length);
  }
  void resize(index_t tokens, index_t experts, index_t lines, index_t length, index_t most) {
    coupling.resize(tokens, experts);
    for (auto* m : {&scores, &shifted}) m->resize(lines, length);
    ids.resize(lines, most);
    entries.resize(lines, most);
    sums.resize(length);
    ascent.reset(length);
  }
};

}  // namespace detail

/// Columns, one an expert, have at most m entries.
template <FloatOrDouble Scalar>
class sparse_column_coupling {
public:
  static constexpr bool zero_is_a_choice = true;

  using tape = detail::sparse_lines<Scalar>;  // a line an expert

  /// Throws std::invalid_argument unless gamma > 0, steps >= 1 and the learning rate is at least 0.
  explicit sparse_column_coupling(capacity_limit entries, sparse_coupling_options o = {})
      : limit_(std::move(entries)), options_(checked(o)) {}

  static sparse_coupling_options checked(sparse_coupling_options o) {
    if (!is_above(o.gamma, 0) || o.steps < 1 || !is_at_least(o.learning_rate, 0))
      throw_invalid("a sparse coupling needs gamma > 0, steps >= 1 and a learning rate >= 0, not ", o.gamma, ", ",
                    o.steps, " and ", o.learning_rate);
    return o;
  }

  void reserve(const choice_call<Scalar>& call, tape& t) const {
    t.reserve(call.tokens, call.experts, call.experts, call.tokens);
  }

  void couple(const choice_batch<Scalar>& batch, tape& t) const {
    const auto n = static_cast<index_t>(batch.routable.size());
    const index_t experts = batch.experts;
    const index_t most = (std::min)(
        n, limit_.of(
               {.tokens = n, .top_k = 1, .experts = experts, .training = batch.context.training, .largest_load = n}));
    t.resize(batch.tokens, experts, experts, n, most);
    for (index_t i = 0; i < n; ++i) {
      Scalar* const row = t.coupling.row(batch.routable[static_cast<std::size_t>(i)]);
      kernel::softmax(batch.logits.row(batch.routable[static_cast<std::size_t>(i)]), row, experts);
      for (index_t e = 0; e < experts; ++e) t.scores(e, i) = row[e];
    }
    const Scalar mass = static_cast<Scalar>(n) / static_cast<Scalar>(experts);
    for (index_t step = 1;; ++step) {
      batch.context.executor.for_work(4 * experts * n).parallel_for(experts, [&](index_t e) {
        Scalar* const v = t.shifted.row(e);
        const Scalar scale = static_cast<Scalar>(options_.gamma) * mass;
        for (index_t i = 0; i < n; ++i) v[i] = (t.ascent.potential[i] + t.scores(e, i)) / scale;
        kernel::top_k(v, n, most, t.ids.row(e));
        for (index_t j = 0; j < most; ++j) t.entries(e, j) = v[t.ids(e, j)];
        detail::project_to_simplex(t.entries.row(e), most);
      });
      if (step > options_.steps) break;
      t.sums.fill(Scalar(0));
      for (index_t e = 0; e < experts; ++e)
        for (index_t j = 0; j < most; ++j) t.sums[t.ids(e, j)] += mass * t.entries(e, j);
      t.ascent.step(step, options_.learning_rate, [&](index_t i) { return t.sums[i] - Scalar(1); });
    }
    for (const index_t token : batch.routable) std::fill_n(t.coupling.row(token), experts, Scalar(0));
    for (index_t e = 0; e < experts; ++e)
      for (index_t j = 0; j < most; ++j)
        t.coupling(batch.routable[static_cast<std::size_t>(t.ids(e, j))], e) = mass * t.entries(e, j);
  }

private:
  capacity_limit limit_;
  sparse_coupling_options options_;
};

/// Rows, one a token, have at most k entries, k the call's.
template <FloatOrDouble Scalar>
class sparse_row_coupling {
public:
  static constexpr bool zero_is_a_choice = false;

  using tape = detail::sparse_lines<Scalar>;  // a line a token

  /// Throws std::invalid_argument as sparse_column_coupling.
  explicit sparse_row_coupling(sparse_coupling_options o = {}) : options_(sparse_column_coupling<Scalar>::checked(o)) {}

  void reserve(const choice_call<Scalar>& call, tape& t) const {
    t.reserve(call.tokens, call.experts, call.tokens, call.experts);
  }

  void couple(const choice_batch<Scalar>& batch, tape& t) const {
    const auto n = static_cast<index_t>(batch.routable.size());
    const index_t experts = batch.experts, k = batch.k;
    t.resize(batch.tokens, experts, n, experts, k);
    for (index_t i = 0; i < n; ++i)
      kernel::softmax(batch.logits.row(batch.routable[static_cast<std::size_t>(i)]), t.scores.row(i), experts);
    const Scalar mass = static_cast<Scalar>(n) / static_cast<Scalar>(experts);
    for (index_t step = 1;; ++step) {
      batch.context.executor.parallel_each(n, 4 * experts, [&](index_t i) {
        Scalar* const v = t.shifted.row(i);
        for (index_t e = 0; e < experts; ++e)
          v[e] = (t.ascent.potential[e] + t.scores(i, e)) / static_cast<Scalar>(options_.gamma);
        kernel::top_k(v, experts, k, t.ids.row(i));
        for (index_t j = 0; j < k; ++j) t.entries(i, j) = v[t.ids(i, j)];
        detail::project_to_simplex(t.entries.row(i), k);
      });
      if (step > options_.steps) break;
      t.sums.fill(Scalar(0));
      for (index_t i = 0; i < n; ++i)
        for (index_t j = 0; j < k; ++j) t.sums[t.ids(i, j)] += t.entries(i, j);
      t.ascent.step(step, options_.learning_rate, [&](index_t e) { return t.sums[e] - mass; });
    }
    for (index_t i = 0; i < n; ++i) {
      Scalar* const row = t.coupling.row(batch.routable[static_cast<std::size_t>(i)]);
      std::fill_n(row, experts, Scalar(0));
      for (index_t j = 0; j < k; ++j) row[t.ids(i, j)] = t.entries(i, j);
    }
  }

private:
  sparse_coupling_options options_;
};

static_assert(Coupling<sparse_column_coupling<float>, float> && Coupling<sparse_row_coupling<float>, float>);

}  // namespace sluice::inline SLUICE_ISA
