/// Which experts of a layer stay when it is made smaller, by what they did.
///
///   most_used(scores, n)   the n experts with the largest scores, ascending; equal scores: the lower stays; NaN last
///   router_change(before, after)   [E]: |w_e after| - |w_e before|, or |w_e after - w_e before|, w_e the router's row
///   usage_pruning          while training on a task, experts that receive little go:
///     usage_e <- decay usage_e + (1 - decay) share_e                        share of a batch's tokens
///     at a round, over the A experts alive: u = usage / sum of it; threshold = beta / A
///     fewer than `minimum` with u >= threshold, or the last round: the `minimum` most used stay; else those above it
///
///   router_rows(router, ids), kept_experts(bank, ids)   what is left of the router's rows and of the experts
///
/// Scores may be anything that was counted: tokens of a validation set, all its languages mixed, summed weights, or the
/// change of the router between a published model and what was made of it. Keeping every expert changes nothing. Where
/// weights are a softmax over the chosen ones, tokens whose experts all stay have the same outputs. Chen et al. 2022,
/// "Task-Specific Expert Pruning for Sparse Mixture-of-Experts", arXiv:2206.00277; Chowdhury et al. 2024, "A Provably
/// Effective Method for Pruning Experts in Fine-tuned Sparse Mixture-of-Experts", arXiv:2405.16646; Kim et al. 2021,
/// arXiv:2109.10465 (by utilisation).
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/types.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// Throws std::invalid_argument unless 1 <= n <= E.
template <FloatOrDouble Scalar>
std::vector<index_t> most_used(std::span<const Scalar> scores, index_t n) {
  const auto experts = static_cast<index_t>(scores.size());
  if (n < 1 || n > experts) throw_invalid("of ", experts, " experts ", n, " cannot stay");
  std::vector<index_t> ids(scores.size());
  std::iota(ids.begin(), ids.end(), index_t{0});
  std::stable_sort(ids.begin(), ids.end(),
                   [&](index_t a, index_t b) { return order_key(scores[as_size(a)]) > order_key(scores[as_size(b)]); });
  ids.resize(as_size(n));
  std::sort(ids.begin(), ids.end());
  return ids;
}

enum class router_change_measure { of_norm, of_row };

/// Of routers [E,D], an expert a row. Throws std::invalid_argument if shapes differ, or if rows have length 1 in both,
/// so that of_norm says nothing.
template <FloatOrDouble Scalar>
std::vector<Scalar> router_change(tokens_in<Scalar> before, tokens_in<Scalar> after,
                                  router_change_measure measure = router_change_measure::of_norm) {
  if (before.rows() != after.rows() || before.cols() != after.cols())
    throw_invalid("a router [", after.rows(), ", ", after.cols(), "] did not come from one of [", before.rows(), ", ",
                  before.cols(), "]");
  const auto is_normalized = [](tokens_in<Scalar> m) {
    return m.rows() > 0 && (m.rowwise().norm().array() - 1).matrix().cwiseAbs().maxCoeff() < Scalar(1e-4);
  };
  if (measure == router_change_measure::of_norm && is_normalized(before) && is_normalized(after))
    throw_invalid("the rows of both routers have length 1: their lengths do not tell ", before.rows(),
                  " experts apart");
  std::vector<Scalar> scores(as_size(before.rows()));
  for (index_t e = 0; e < before.rows(); ++e)
    scores[as_size(e)] = measure == router_change_measure::of_norm ? after.row(e).norm() - before.row(e).norm()
                                                                   : (after.row(e) - before.row(e)).norm();
  return scores;
}

/// Rows ids[0], ids[1], .. of m. Throws std::invalid_argument for a row that is not there.
template <FloatOrDouble Scalar>
matrix<Scalar> router_rows(tokens_in<Scalar> m, std::span<const index_t> ids) {
  matrix<Scalar> kept(static_cast<index_t>(ids.size()), m.cols());
  for (index_t i = 0; i < kept.rows(); ++i) {
    const index_t id = ids[as_size(i)];
    if (id < 0 || id >= m.rows()) throw_invalid("there is no expert ", id, " among ", m.rows());
    kept.row(i) = m.row(id);
  }
  return kept;
}

/// A bank of copies of the experts ids[0], ids[1], .. Throws std::invalid_argument for none, or one that is not there.
template <typename Bank>
Bank kept_experts(const Bank& bank, std::span<const index_t> ids) {
  std::vector<typename Bank::expert_type> kept;
  for (const index_t id : ids) {
    if (id < 0 || id >= bank.experts()) throw_invalid("there is no expert ", id, " among ", bank.experts());
    kept.push_back(bank.expert(id));
  }
  return Bank(std::move(kept));
}

struct usage_pruning_options {
  double beta = 0.1;
  index_t minimum = 1;  ///< experts that stay in any case
  double decay = 0.9;
};

class usage_pruning {
public:
  /// Throws std::invalid_argument unless 1 <= minimum <= E, beta >= 0 and 0 <= decay < 1. Usage begins alike.
  explicit usage_pruning(index_t experts, usage_pruning_options o = {}) : options_(o) {
    if (o.minimum < 1 || o.minimum > experts || !is_at_least(o.beta, 0.0) || !is_between(o.decay, 0, 1) || o.decay == 1)
      throw_invalid("pruning needs a minimum of 1 to ", experts, " experts, beta >= 0 and a decay in [0, 1), not ",
                    o.minimum, ", ", o.beta, " and ", o.decay);
    usage_.assign(as_size(experts), 1 / static_cast<double>(experts));
    alive_.assign(as_size(experts), 1);
  }

  std::span<const double> usage() const noexcept { return usage_; }
  /// Takes a saved usage up again. Throws std::invalid_argument if it is not one number >= 0 an expert.
  void set_usage(std::span<const double> usage) {
    validate(usage);
    usage_.assign(usage.begin(), usage.end());
  }
  /// The share of a batch's tokens that every expert received.
  void observe(std::span<const double> share) {
    validate(share);
    for (std::size_t e = 0; e < usage_.size(); ++e)
      usage_[e] = options_.decay * usage_[e] + (1 - options_.decay) * share[e];
  }

  /// A round; the last one leaves the minimum. Returns who is alive, ascending.
  std::vector<index_t> prune(bool is_last = false) {
    std::vector<double> used(usage_.size());
    double sum = 0;
    index_t count = 0;
    for (std::size_t e = 0; e < used.size(); ++e)
      if (alive_[e] != 0) sum += usage_[e], ++count;
    for (std::size_t e = 0; e < used.size(); ++e)
      used[e] = alive_[e] != 0 && sum > 0 ? usage_[e] / sum : alive_[e] != 0 ? 0 : -1;
    if (count > options_.minimum) {
      const double threshold = options_.beta / static_cast<double>(count);
      const auto passing = std::count_if(used.begin(), used.end(), [&](double u) { return u >= threshold; });
      if (is_last || passing < options_.minimum) {
        std::fill(alive_.begin(), alive_.end(), std::uint8_t{0});
        for (const index_t e : most_used<double>(used, options_.minimum)) alive_[as_size(e)] = 1;
      } else {
        for (std::size_t e = 0; e < used.size(); ++e) alive_[e] = used[e] > threshold ? 1 : 0;
      }
    }
    return alive();
  }

  std::vector<index_t> alive() const {
    std::vector<index_t> ids;
    for (std::size_t e = 0; e < alive_.size(); ++e)
      if (alive_[e] != 0) ids.push_back(static_cast<index_t>(e));
    return ids;
  }

private:
  void validate(std::span<const double> numbers) const {
    if (numbers.size() != usage_.size()) throw_invalid(usage_.size(), " experts have no ", numbers.size(), " shares");
    for (std::size_t e = 0; e < numbers.size(); ++e)
      if (!is_at_least(numbers[e], 0.0) || !is_finite(numbers[e]))
        throw_invalid("expert ", e, " has the share ", numbers[e]);
  }

  usage_pruning_options options_;
  std::vector<double> usage_;
  std::vector<std::uint8_t> alive_;
};

}  // namespace sluice::inline SLUICE_ISA
