/// How alike experts are once their hidden units stand in the same order.
///
///   C [H,H]    cosine of unit i of a with unit j of b
///   pi         the permutation with the largest sum over i of C[i, pi(i)]
///   cosine     of a, all numbers in a row, with b whose unit pi(i) stands at place i
///   kendall    tau of pi against the order as it is: 1 - 4 inversions / (H (H - 1)),  1 for equal order, -1 for the
///              reverse one, about 0 for chance
///
/// Two experts that are equal but for the order of their units get a cosine of 1 and that order. Matrices [H,D] have a
/// row a unit (expert_weights.hpp); each of an expert's matrices is matched on its own, as the paper does: units that
/// take part in all of them at once are aligned in convert/merged_experts.hpp. Exact, in time of H^3
/// (kernel/best_matching.hpp). Equal sums: as the solver prefers. H = 1: kendall is 1. Units of zeros are
/// alike to none and stand where room is left. Lo et al. 2024, arXiv:2406.18219, section 4.1.
#pragma once

#include <sluice/inspect/weight_similarity.hpp>
#include <sluice/kernel/best_matching.hpp>

#include <span>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// Of a permutation against the identity. Throws std::invalid_argument if it is none.
inline double kendall_tau(std::span<const index_t> order) {
  const auto count = static_cast<index_t>(order.size());
  std::vector<char> is_taken(order.size(), 0);
  for (const index_t i : order) {
    if (i < 0 || i >= count || is_taken[as_size(i)]) throw_invalid("an order of ", count, " places has no place ", i);
    is_taken[as_size(i)] = 1;
  }
  if (count < 2) return 1;
  double inversions = 0;
  for (index_t i = 0; i < count; ++i)
    for (index_t j = i + 1; j < count; ++j) inversions += order[as_size(i)] > order[as_size(j)] ? 1 : 0;
  return 1 - 4 * inversions / (static_cast<double>(count) * static_cast<double>(count - 1));
}

struct unit_matching {
  std::vector<index_t> order;  ///< pi
  double cosine;
  double kendall;
};

/// Throws std::invalid_argument unless a and b are of one shape, with units, and finite.
template <typename Scalar>
unit_matching match_units(const matrix<Scalar>& a, const matrix<Scalar>& b) {
  if (a.rows() != b.rows() || a.cols() != b.cols() || a.rows() < 1)
    throw_invalid("units of [", a.rows(), ", ", a.cols(), "] cannot be matched with those of [", b.rows(), ", ",
                  b.cols(), "]");
  for (const auto* m : {&a, &b})
    if (!all_finite(m->data(), m->size())) throw_invalid("units that are not finite cannot be matched");
  unit_matching made{kernel::best_matching(row_cosines(a, b)), 0, 0};
  matrix<Scalar> moved(b.rows(), b.cols());
  for (index_t i = 0; i < b.rows(); ++i) moved.row(i) = b.row(made.order[as_size(i)]);
  made.cosine = matrix_similarity(std::vector<matrix<Scalar>>{a, moved})(0, 1);
  made.kendall = kendall_tau(made.order);
  return made;
}

struct matched_similarity {
  matrix<double> cosine;   ///< [E,E]
  matrix<double> kendall;  ///< [E,E]
};

/// Each with each; an expert with itself is at 1.
template <typename Scalar>
matched_similarity match_experts(const std::vector<matrix<Scalar>>& of) {
  const auto experts = static_cast<index_t>(of.size());
  matched_similarity all{matrix<double>::Ones(experts, experts), matrix<double>::Ones(experts, experts)};
  for (index_t e = 0; e < experts; ++e)
    for (index_t f = 0; f < e; ++f) {
      const unit_matching pair = match_units(of[as_size(f)], of[as_size(e)]);
      all.cosine(e, f) = all.cosine(f, e) = pair.cosine;
      all.kendall(e, f) = all.kendall(f, e) = pair.kendall;
    }
  return all;
}

}  // namespace sluice::inline SLUICE_ISA
