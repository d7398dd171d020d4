/// Experts that are used alike become one: grouping by routing, alignment of hidden units, usage-weighted means
/// (M-SMoE).
///
///   dominant   over all layers: the most used expert of each layer counts as used wholly; sorted by usage, descending,
///              entry number average x layers (from 0) is the threshold; a layer gets a group for every expert strictly
///              above it, its most used ones; at least one
///   similarity (1 + cosine of two experts' logits over the tokens) / 2;  a column of zeros is at right angles to all
///   join       in descending usage, each other expert to the most similar dominant one
///   align      pi maximises sum over j of C[j, pi(j)],  C = first_ref first_e^T + last_ref^T last_e: unit pi(j)
///              of e stands at j then, and computes the same. The reference is the group's lowest expert
///   merge      W = sum of usage_e W_e / (sum of usage_e + 1e-7) over the group; a plain mean where nobody was used
///
/// The router stays as it is: slots of a group point to one expert, whose gates add up where a token chose several
/// (`slot`, the lowest expert of the group). Equal usage: the lower expert; equal similarity: the more used dominant
/// one. Assignments are exact, in time of H^3. Sums are in double: equal bits always. Li et al. 2023, "Merge, Then
/// Compress: Demystify Efficient SMoE with Hints from Its Routing Policy", arXiv:2310.01334.
#pragma once

#include <sluice/convert/gathered_expert.hpp>
#include <sluice/kernel/best_matching.hpp>

#include <limits>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

inline std::vector<index_t> by_usage(const double* usage, index_t count) {
  std::vector<index_t> order(as_size(count));
  std::iota(order.begin(), order.end(), index_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](index_t a, index_t b) { return order_key(usage[a]) > order_key(usage[b]); });
  return order;
}

}  // namespace detail

/// How many groups every layer gets. usage [layers,E], finite and at least 0. Throws std::invalid_argument for other
/// usage, or unless 1 <= average <= E.
inline std::vector<index_t> group_counts(const matrix<double>& usage, index_t average) {
  const index_t layers = usage.rows(), experts = usage.cols();
  if (layers < 1 || average < 1 || average > experts)
    throw_invalid(layers, " layers of ", experts, " experts cannot have ", average, " groups each");
  for (index_t i = 0; i < usage.size(); ++i)
    if (!is_at_least(usage.data()[i], 0.0) || !is_finite(usage.data()[i]))
      throw_invalid("expert ", i % experts, " of layer ", i / experts, " has the usage ", usage.data()[i]);
  matrix<double> counted = usage;
  for (index_t l = 0; l < layers; ++l) counted(l, detail::by_usage(usage.data() + l * experts, experts)[0]) = 1;
  std::vector<double> sorted(counted.data(), counted.data() + counted.size());
  std::sort(sorted.begin(), sorted.end(), [](double a, double b) { return a > b; });
  const std::size_t place = as_size(average * layers);
  const double threshold = place < sorted.size() ? sorted[place] : -1;
  std::vector<index_t> counts(as_size(layers), 0);
  for (index_t l = 0; l < layers; ++l) {
    for (index_t e = 0; e < experts; ++e) counts[as_size(l)] += counted(l, e) > threshold ? 1 : 0;
    counts[as_size(l)] = (std::max)(counts[as_size(l)], index_t{1});
  }
  return counts;
}

/// [E,E], of router logits [T,E].
template <FloatOrDouble Scalar>
matrix<double> logit_similarity(tokens_in<Scalar> logits) {
  const matrix<double> x = logits.template cast<double>(), products = x.transpose() * x;
  matrix<double> similar(x.cols(), x.cols());
  for (index_t a = 0; a < x.cols(); ++a)
    for (index_t b = 0; b < x.cols(); ++b) {
      const double size = std::sqrt(products(a, a) * products(b, b));
      similar(a, b) = (1 + (size > 0 ? products(a, b) / size : 0)) / 2;
    }
  return similar;
}

/// The group of every expert, 0 being that of the most used one. Throws std::invalid_argument if sizes do not fit.
inline std::vector<index_t> expert_groups(std::span<const double> usage, const matrix<double>& similarity,
                                          index_t groups) {
  const auto experts = static_cast<index_t>(usage.size());
  if (groups < 1 || groups > experts || similarity.rows() != experts || similarity.cols() != experts)
    throw_invalid(experts, " experts of a similarity [", similarity.rows(), ", ", similarity.cols(), "] cannot be in ",
                  groups, " groups");
  const std::vector<index_t> order = detail::by_usage(usage.data(), experts);
  std::vector<index_t> labels(as_size(experts));
  for (index_t i = 0; i < experts; ++i) {
    index_t best = 0;
    for (index_t g = 1; g < groups && i >= groups; ++g)
      if (similarity(order[as_size(i)], order[as_size(g)]) > similarity(order[as_size(i)], order[as_size(best)]))
        best = g;
    labels[as_size(order[as_size(i)])] = i < groups ? i : best;
  }
  return labels;
}

/// pi [H]: which unit of `other` goes where, so that it is most like the reference. Throws std::invalid_argument for
/// other shapes or numbers that are not finite.
template <FloatOrDouble Scalar>
std::vector<index_t> aligned_units(const expert_matrices<Scalar>& reference, const expert_matrices<Scalar>& other) {
  const expert_matrices<Scalar> both[] = {reference, other};
  detail::check_gathered<Scalar>(both);
  const matrix<double> likeness =
      reference.first.template cast<double>() * other.first.template cast<double>().transpose() +
      reference.last.template cast<double>().transpose() * other.last.template cast<double>();
  const index_t hidden = likeness.rows();
  for (index_t i = 0; i < likeness.size(); ++i)
    if (!is_finite(likeness.data()[i]))
      throw_invalid("unit ", i % hidden, " is not finite, or too large to be compared");
  return kernel::best_matching(likeness);
}

/// Unit pi[j] at place j.
template <FloatOrDouble Scalar>
expert_matrices<Scalar> reordered_units(const expert_matrices<Scalar>& expert, std::span<const index_t> pi) {
  expert_matrices<Scalar> made = expert;
  for (index_t j = 0; j < static_cast<index_t>(pi.size()); ++j) {
    made.first.row(j) = expert.first.row(pi[as_size(j)]);
    made.last.col(j) = expert.last.col(pi[as_size(j)]);
  }
  return made;
}

/// The mean of some experts by usage. Throws std::invalid_argument if shapes or sizes differ.
template <FloatOrDouble Scalar>
expert_matrices<Scalar> merged_experts(std::span<const expert_matrices<Scalar>> experts,
                                       std::span<const double> usage) {
  detail::check_gathered(experts);
  if (usage.size() != experts.size()) throw_invalid(experts.size(), " experts have no ", usage.size(), " usages");
  const double sum = std::accumulate(usage.begin(), usage.end(), 0.0);
  matrix<double> first = matrix<double>::Zero(experts[0].first.rows(), experts[0].first.cols());
  matrix<double> last = matrix<double>::Zero(experts[0].last.rows(), experts[0].last.cols());
  for (std::size_t e = 0; e < experts.size(); ++e) {
    const double share = sum > 0 ? usage[e] / (sum + 1e-7) : 1 / static_cast<double>(experts.size());
    first += share * experts[e].first.template cast<double>();
    last += share * experts[e].last.template cast<double>();
  }
  return {first.template cast<Scalar>(), last.template cast<Scalar>()};
}

template <FloatOrDouble Scalar>
struct merged_mixture {
  std::vector<index_t> slot;                     ///< [E]: whose matrices an expert has now
  std::vector<std::vector<index_t>> alignment;   ///< [E]: pi of each; its own order where it was not moved
  std::vector<expert_matrices<Scalar>> experts;  ///< [E]; equal within a group
};

/// Groups of one layer, from expert_groups, merged; a group of one is left as it is. Throws std::invalid_argument if
/// sizes do not fit.
template <FloatOrDouble Scalar>
merged_mixture<Scalar> merge_groups(std::span<const expert_matrices<Scalar>> experts, std::span<const index_t> groups,
                                    std::span<const double> usage, bool align = true) {
  detail::check_gathered(experts);
  if (groups.size() != experts.size() || usage.size() != experts.size())
    throw_invalid(experts.size(), " experts have no ", groups.size(), " groups and ", usage.size(), " usages");
  merged_mixture<Scalar> made;
  made.experts.assign(experts.begin(), experts.end());
  std::vector<index_t> own(as_size(experts[0].first.rows()));
  std::iota(own.begin(), own.end(), index_t{0});
  made.alignment.assign(experts.size(), own);
  made.slot.assign(experts.size(), 0);
  for (std::size_t e = 0; e < experts.size(); ++e)
    made.slot[e] = std::find(groups.begin(), groups.end(), groups[e]) - groups.begin();
  for (std::size_t lowest = 0; lowest < experts.size(); ++lowest) {
    if (made.slot[lowest] != static_cast<index_t>(lowest)) continue;
    std::vector<expert_matrices<Scalar>> members;
    std::vector<double> used;
    for (std::size_t e = lowest; e < experts.size(); ++e) {
      if (groups[e] != groups[lowest]) continue;
      if (align && e != lowest) made.alignment[e] = aligned_units(experts[lowest], experts[e]);
      members.push_back(reordered_units<Scalar>(experts[e], made.alignment[e]));
      used.push_back(usage[e]);
    }
    if (members.size() == 1) continue;
    const expert_matrices<Scalar> merged = merged_experts<Scalar>(members, used);
    for (std::size_t e = lowest; e < experts.size(); ++e)
      if (groups[e] == groups[lowest]) made.experts[e] = merged;
  }
  return made;
}

}  // namespace sluice::inline SLUICE_ISA
