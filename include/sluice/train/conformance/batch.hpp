/// Batches and threads that the conformance kit works with, and comparisons of their numbers.
#pragma once

#include <sluice/core/context.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/random.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <span>
#include <thread>
#include <vector>

namespace sluice::inline SLUICE_ISA::detail {

template <typename Scalar>
matrix<Scalar> random_rows(index_t rows, index_t cols, std::uint64_t seed) {
  const random_source random(seed);
  matrix<Scalar> m(rows, cols);
  for (index_t i = 0; i < m.size(); ++i) m.data()[i] = static_cast<Scalar>(random.normal(random_site::user_site, i));
  return m;
}

/// Some tokens, with everything that a context says about each of them, picked row by row from a larger batch.
template <typename Scalar>
class picked_batch {
public:
  matrix<Scalar> x;
  std::vector<std::uint8_t> mask;

  picked_batch(const matrix<Scalar>& all, const routing_context<Scalar>& source, const std::vector<index_t>& rows)
      : x(static_cast<index_t>(rows.size()), all.cols()), context_(source) {
    for (index_t i = 0; i < x.rows(); ++i) x.row(i) = all.row(rows[static_cast<std::size_t>(i)]);
    pick(source.token_mask, rows, mask);
    pick(source.token_ids, rows, token_ids_);
    pick(source.modality_ids, rows, modality_ids_);
    pick(source.cluster_ids, rows, cluster_ids_);
    pick(source.protected_tokens, rows, protected_tokens_);
    pick(source.previous_logits, rows, previous_logits_);
    pick(source.expert_ids, rows, expert_ids_);
    pick(source.expert_weights, rows, expert_weights_);
    pick(source.features, rows, features_);
    std::vector<index_t> everything(static_cast<std::size_t>(all.rows()));
    std::iota(everything.begin(), everything.end(), index_t(0));
    if (rows == everything) {
      groups_.assign(source.groups.begin(), source.groups.end());
      sequences_.assign(source.sequences.begin(), source.sequences.end());
    }
    std::vector<index_t> group_rows(groups_.empty() ? 1 : groups_.size() - 1);
    std::iota(group_rows.begin(), group_rows.end(), index_t(0));
    pick(source.group_features, group_rows, group_features_);
    encoders_.assign(source.encoders.begin(), source.encoders.end());
    if (group_rows.size() == 1 && sequences_.empty())  // some tokens are one sequence
      for (auto& one : encoders_) one.sequences = {};
  }

  routing_context<Scalar> context(bool training, executor_ref executor = {}) const {
    routing_context<Scalar> c = context_;
    c.training = training;
    c.executor = executor;
    c.token_mask = mask;
    c.token_ids = token_ids_;
    c.modality_ids = modality_ids_;
    c.cluster_ids = cluster_ids_;
    c.protected_tokens = protected_tokens_;
    c.groups = groups_;
    c.sequences = sequences_;
    if (context_.previous_logits) c.previous_logits = previous_logits_;
    if (context_.expert_ids) c.expert_ids = expert_ids_;
    if (context_.expert_weights) c.expert_weights = expert_weights_;
    if (context_.features) c.features = features_;
    if (context_.group_features) c.group_features = group_features_;
    c.encoders = encoders_;
    return c;
  }

private:
  template <typename T>
  static void pick(std::span<const T> from, const std::vector<index_t>& rows, std::vector<T>& to) {
    if (!from.empty())
      for (const index_t r : rows) to.push_back(from[static_cast<std::size_t>(r)]);
  }
  template <typename T>
  static void pick(const optional_matrix<T>& from, const std::vector<index_t>& rows, matrix<T>& to) {
    if (!from) return;
    to.resize(static_cast<index_t>(rows.size()), from.cols);
    for (index_t i = 0; i < to.rows(); ++i) to.row(i) = from.map().row(rows[static_cast<std::size_t>(i)]);
  }

  routing_context<Scalar> context_;
  std::vector<index_t> token_ids_;
  std::vector<index_t> modality_ids_;
  std::vector<index_t> cluster_ids_;
  std::vector<std::uint8_t> protected_tokens_;
  std::vector<index_t> groups_;
  std::vector<index_t> sequences_;
  matrix<index_t> expert_ids_;
  matrix<Scalar> expert_weights_;
  matrix<Scalar> previous_logits_;
  matrix<Scalar> features_;
  matrix<Scalar> group_features_;
  std::vector<encoder_states<Scalar>> encoders_;  ///< whole: they have no rows of tokens
};

/// 0 .. count-1, in order or from a shuffled deck.
inline std::vector<index_t> ascending_rows(index_t count) {
  std::vector<index_t> rows(static_cast<std::size_t>(count));
  std::iota(rows.begin(), rows.end(), index_t(0));
  return rows;
}
inline std::vector<index_t> shuffled_rows(index_t count, std::uint64_t seed) {
  std::vector<index_t> rows = ascending_rows(count);
  const random_source random(seed);
  std::vector<double> key(rows.size());
  for (index_t i = 0; i < count; ++i) key[static_cast<std::size_t>(i)] = random.uniform(random_site::user_site, i);
  std::stable_sort(rows.begin(), rows.end(), [&](index_t a, index_t b) {
    return key[static_cast<std::size_t>(a)] < key[static_cast<std::size_t>(b)];
  });
  return rows;
}

/// `count` threads of its own for every call; each takes its share from the last task to the first, so that the order
/// of tasks is far from the serial one.
class backward_threads {
public:
  explicit backward_threads(int count) : count_(count) {}

  template <typename Body>
  void parallel_for(index_t n, Body&& body) {
    std::vector<std::thread> threads;
    for (int k = 0; k < count_; ++k)
      threads.emplace_back([&, k] {
        for (index_t task = n - 1; task >= 0; --task)
          if (task % count_ == k) body(task);
      });
    for (std::thread& thread : threads) thread.join();
  }
  /// The least: tests are small.
  index_t smallest_work() const noexcept { return 0; }

private:
  int count_;
};

template <typename Scalar>
bool equal_bits(const Scalar* a, const Scalar* b, index_t count) {
  return count == 0 || std::memcmp(a, b, static_cast<std::size_t>(count) * sizeof(Scalar)) == 0;
}
template <typename Scalar>
bool equal_bits(const matrix<Scalar>& a, const matrix<Scalar>& b) {
  return a.rows() == b.rows() && a.cols() == b.cols() && equal_bits(a.data(), b.data(), a.size());
}
template <typename Scalar>
bool equal_bits(const std::vector<Scalar>& a, const std::vector<Scalar>& b) {
  return a.size() == b.size() && equal_bits(a.data(), b.data(), static_cast<index_t>(a.size()));
}

/// Largest difference of two arrays; the largest double if one is NaN where the other is not.
template <typename Scalar>
double largest_difference(const Scalar* a, const Scalar* b, index_t count) {
  double largest = 0;
  for (index_t i = 0; i < count; ++i) {
    if (equal_bits(a + i, b + i, 1) || (is_nan(a[i]) && is_nan(b[i]))) continue;
    const double difference = (std::abs)(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    largest = is_nan(difference) ? (std::numeric_limits<double>::max)() : (std::max)(largest, difference);
  }
  return largest;
}
template <typename Scalar>
double largest_difference(const matrix<Scalar>& a, const matrix<Scalar>& b) {
  if (a.rows() != b.rows() || a.cols() != b.cols()) return (std::numeric_limits<double>::max)();
  return largest_difference(a.data(), b.data(), a.size());
}

}  // namespace sluice::inline SLUICE_ISA::detail
