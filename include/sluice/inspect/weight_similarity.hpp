/// How alike the weights of experts are: as whole matrices, and by their mean unit.
///
///   matrix_similarity      cosine of W_e and W_f, all numbers in a row                     [E,E]
///   mean_unit_similarity   cosine of the means over units of W_e and of W_f                [E,E]
///
/// The first asks for equal units at equal places; the second does not see how units are ordered, but experts whose
/// units differ around one mean look alike. Between the two: unit_matching.hpp. Matrices [H,D] have a row a unit
/// (expert_weights.hpp); for the second H may differ. Zeros and NaN: cosine.hpp. No expert: an empty matrix.
/// Lo, Huang, Qiu, Wang, Fu 2024, "A Closer Look into Mixture-of-Experts in Large Language Models", arXiv:2406.18219.
#pragma once

#include <sluice/inspect/cosine.hpp>

#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// Throws std::invalid_argument unless all have the width of the first, and its height if that matters.
template <typename Scalar>
void check_alike(const std::vector<matrix<Scalar>>& of, bool heights) {
  for (std::size_t e = 1; e < of.size(); ++e)
    if (of[e].cols() != of[0].cols() || (heights && of[e].rows() != of[0].rows()))
      throw_invalid("matrix ", e, " is [", of[e].rows(), ", ", of[e].cols(), "] beside a first one of [", of[0].rows(),
                    ", ", of[0].cols(), "]");
}

}  // namespace detail

/// [E, H D]: every matrix in a row. Throws std::invalid_argument if shapes differ.
template <typename Scalar>
matrix<Scalar> flattened(const std::vector<matrix<Scalar>>& of) {
  detail::check_alike(of, true);
  matrix<Scalar> flat(static_cast<index_t>(of.size()), of.empty() ? 0 : of[0].size());
  for (std::size_t e = 0; e < of.size(); ++e)
    flat.row(static_cast<index_t>(e)) =
        Eigen::Map<const Eigen::Matrix<Scalar, 1, Eigen::Dynamic>>(of[e].data(), of[e].size());
  return flat;
}

/// Throws std::invalid_argument if shapes differ.
template <typename Scalar>
matrix<double> matrix_similarity(const std::vector<matrix<Scalar>>& of) {
  return row_cosines(flattened(of));
}

/// Throws std::invalid_argument if widths differ, or there are no units.
template <typename Scalar>
matrix<double> mean_unit_similarity(const std::vector<matrix<Scalar>>& of) {
  detail::check_alike(of, false);
  if (of.empty()) return matrix<double>(0, 0);
  matrix<double> means(static_cast<index_t>(of.size()), of[0].cols());
  for (std::size_t e = 0; e < of.size(); ++e) {
    if (of[e].rows() < 1) throw_invalid("matrix ", e, " has no units to average");
    means.row(static_cast<index_t>(e)) = of[e].template cast<double>().colwise().mean();
  }
  return row_cosines(means);
}

}  // namespace sluice::inline SLUICE_ISA
