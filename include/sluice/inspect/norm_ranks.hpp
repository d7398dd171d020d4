/// Whether a router prefers the experts that put out much: ranks of scores against ranks of lengths.
///
///   of every token its experts are ranked by score and by |f_e(x)|, 0 the largest
///   table[i,j] += 1 for an expert at rank i by score and rank j by length               [E,E]
///
///   const auto table = norm_ranks(output_norms(expert_outputs(layer.bank(), x)), scores);
///
/// Weight on the diagonal: large outputs have high scores (Mixtral). diagonal_share is the part of a token's experts on
/// it, 1/E by chance. Tables of blocks and layers add up. Every row and column sums to the number of tokens. Equal
/// numbers: the lower expert first. A token with NaN among its lengths or scores is left out. T = 0: zeros.
/// Lo et al. 2024, arXiv:2406.18219, section 5.2, whose ranks ascend.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/types.hpp>

#include <algorithm>
#include <numeric>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// Of lengths [T,E] and scores [T,E]. Throws std::invalid_argument if their shapes differ.
template <typename Scalar>
matrix<double> norm_ranks(const matrix<double>& norms, const matrix<Scalar>& scores) {
  if (norms.rows() != scores.rows() || norms.cols() != scores.cols())
    throw_invalid("lengths [", norms.rows(), ", ", norms.cols(), "] and scores [", scores.rows(), ", ", scores.cols(),
                  "] are not those of the same experts and tokens");
  const index_t E = norms.cols();
  matrix<double> table = matrix<double>::Zero(E, E);
  std::vector<index_t> by_score(as_size(E)), by_norm(as_size(E)), norm_rank(as_size(E));
  for (index_t t = 0; t < norms.rows(); ++t) {
    const double* lengths = norms.data() + t * E;
    const Scalar* row = scores.data() + t * E;
    if (any_nan(lengths, E) || any_nan(row, E)) continue;
    std::iota(by_score.begin(), by_score.end(), index_t{0});
    std::iota(by_norm.begin(), by_norm.end(), index_t{0});
    std::sort(by_score.begin(), by_score.end(), largest_first{row});
    std::sort(by_norm.begin(), by_norm.end(), largest_first{lengths});
    for (index_t rank = 0; rank < E; ++rank) norm_rank[as_size(by_norm[as_size(rank)])] = rank;
    for (index_t rank = 0; rank < E; ++rank) table(rank, norm_rank[as_size(by_score[as_size(rank)])]) += 1;
  }
  return table;
}

/// The part of a table that is on its diagonal; NaN of an empty one.
inline double diagonal_share(const matrix<double>& table) {
  const double all = table.sum();
  return all > 0 ? table.trace() / all : quiet_nan<double>();
}

}  // namespace sluice::inline SLUICE_ISA
