/// How far apart the experts of a bank are: distances between what they put out for the same tokens.
///
///   F_i = f_i(X), all T D' numbers      d[i,j] = |F_i - F_j|, or |F_i/|F_i| - F_j/|F_j|| with unit_outputs      [E,E]
///   diversity = mean over the pairs i < j of d[i,j] / largest d        0 where all are equal, at most 1
///
/// The measure by which MMoE-Ex is compared with MMoE: its exclusive experts are to be more diverse. Nothing learns by
/// it. Every expert runs on every token. Tokens that hold NaN are left out, and what an expert makes NaN makes its
/// distances NaN. With one expert, or no tokens, the diversity is 0; an output of length 0 stays 0.
/// Aoki, Tung, Oliveira 2021, "Heterogeneous Multi-task Learning with Expert Diversity", arXiv:2106.10595.
#pragma once

#include <sluice/inspect/expert_outputs.hpp>
#include <sluice/inspect/weight_similarity.hpp>

#include <algorithm>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct diversity_options {
  bool unit_outputs = false;  ///< outputs of an expert at length 1, all together
};

/// d [E,E], in double. Throws std::invalid_argument if x does not have the bank's width.
template <ExpertBank Bank>
matrix<double> expert_distances(const Bank& bank, tokens_in<typename Bank::scalar> x, diversity_options o = {}) {
  using scalar = typename Bank::scalar;
  std::vector<index_t> seen;
  for (index_t t = 0; t < x.rows(); ++t)
    if (!any_nan(x.data() + t * x.outerStride(), x.cols())) seen.push_back(t);
  matrix<scalar> tokens(static_cast<index_t>(seen.size()), x.cols());
  for (index_t t = 0; t < tokens.rows(); ++t) tokens.row(t) = x.row(seen[as_size(t)]);
  const std::vector<matrix<scalar>> of = expert_outputs(bank, tokens_in<scalar>(tokens));
  matrix<double> outputs = flattened(of).template cast<double>();
  for (index_t e = 0; e < outputs.rows(); ++e)
    if (const double length = outputs.row(e).norm(); o.unit_outputs && length > 0) outputs.row(e) /= length;
  matrix<double> distances = matrix<double>::Zero(outputs.rows(), outputs.rows());
  for (index_t i = 0; i < outputs.rows(); ++i)
    for (index_t j = 0; j < i; ++j) distances(i, j) = distances(j, i) = (outputs.row(i) - outputs.row(j)).norm();
  return distances;
}

/// In 0 .. 1, of a matrix of distances.
inline double diversity_of(const matrix<double>& distances) {
  const index_t E = distances.rows();
  double sum = 0, largest = 0;
  for (index_t i = 0; i < E; ++i)
    for (index_t j = 0; j < i; ++j) {
      if (is_nan(distances(i, j))) return quiet_nan<double>();
      sum += distances(i, j);
      largest = (std::max)(largest, distances(i, j));
    }
  return largest == 0 ? 0 : sum / largest / (static_cast<double>(E) * static_cast<double>(E - 1) / 2);
}

}  // namespace sluice::inline SLUICE_ISA
