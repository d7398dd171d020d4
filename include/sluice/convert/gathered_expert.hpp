/// One feed-forward expert of E: OneS' four ways to gather what they know, where a dense student begins.
///
///   experts: first [H,D] and last [D',H] matrices, unit j being row j of the first and column j of the last
///   sum       the matrices added up                        mean      divided by E
///   units     the n_e units of each expert with the largest sqrt(|row|^2 + |column|^2), expert after expert;
///             n_e = H / E, the first H mod E experts give one more
///   directions  every matrix cut to its r leading singular directions, then added up
///
/// A sum is not the sum of the experts' functions: with E alike it has E^2 times the output through a ReLU. Where
/// experts were weighed by a gate and the student is not, scale the last matrix by the gate's mean. Equal sizes: the
/// lower unit. Throws std::invalid_argument unless there is an expert, all are of one shape, and r >= 1. Sums are in
/// double, expert by expert: equal bits always. Singular directions take some ten sweeps of rotations, D^2 H each:
/// minutes for thousands of inputs. Xue et al. 2022, "One Student Knows All Experts Know: From Sparse to Dense",
/// arXiv:2201.10890; which units it ranks how, and r, is left open there.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/types.hpp>
#include <sluice/kernel/small_svd.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// The two matrices of an expert without biases.
template <FloatOrDouble Scalar>
struct expert_matrices {
  matrix<Scalar> first;  ///< [H,D]
  matrix<Scalar> last;   ///< [D',H]
};

namespace detail {

template <typename Scalar>
void check_gathered(std::span<const expert_matrices<Scalar>> experts) {
  if (experts.empty()) throw_invalid("there is no expert to gather");
  const auto& one = experts.front();
  for (std::size_t e = 0; e < experts.size(); ++e)
    if (experts[e].first.rows() != one.first.rows() || experts[e].first.cols() != one.first.cols() ||
        experts[e].last.rows() != one.last.rows() || experts[e].last.cols() != one.first.rows())
      throw_invalid("expert ", e, " has the matrices [", experts[e].first.rows(), ", ", experts[e].first.cols(),
                    "] and [", experts[e].last.rows(), ", ", experts[e].last.cols(), "] beside a first one of [",
                    one.first.rows(), ", ", one.first.cols(), "]");
}

/// The sum over the experts of part(matrix).
template <typename Scalar, typename Part>
expert_matrices<Scalar> added_up(std::span<const expert_matrices<Scalar>> experts, double factor, const Part& part) {
  check_gathered(experts);
  matrix<double> first = matrix<double>::Zero(experts[0].first.rows(), experts[0].first.cols());
  matrix<double> last = matrix<double>::Zero(experts[0].last.rows(), experts[0].last.cols());
  for (const expert_matrices<Scalar>& e : experts) {
    first += part(matrix<double>(e.first.template cast<double>()));
    last += part(matrix<double>(e.last.template cast<double>()));
  }
  return {(factor * first).template cast<Scalar>(), (factor * last).template cast<Scalar>()};
}

/// A matrix of so many leading singular directions.
inline matrix<double> leading_directions(const matrix<double>& m, index_t rank) {
  if (m.rows() < m.cols()) return leading_directions(m.transpose(), rank).transpose();
  const kernel::small_svd svd(m);
  const index_t kept = (std::min)(rank, m.cols());
  return svd.u.leftCols(kept) * svd.s.topRows(kept).col(0).asDiagonal() * svd.v.leftCols(kept).transpose();
}

}  // namespace detail

template <FloatOrDouble Scalar>
expert_matrices<Scalar> gathered_sum(std::span<const expert_matrices<Scalar>> experts) {
  return detail::added_up(experts, 1, [](const matrix<double>& m) { return m; });
}

template <FloatOrDouble Scalar>
expert_matrices<Scalar> gathered_mean(std::span<const expert_matrices<Scalar>> experts) {
  const double factor = 1 / static_cast<double>((std::max)(experts.size(), std::size_t{1}));
  return detail::added_up(experts, factor, [](const matrix<double>& m) { return m; });
}

template <FloatOrDouble Scalar>
expert_matrices<Scalar> gathered_directions(std::span<const expert_matrices<Scalar>> experts, index_t rank) {
  if (rank < 1) throw_invalid("matrices cannot be cut to ", rank, " directions");
  return detail::added_up(experts, 1, [rank](const matrix<double>& m) { return detail::leading_directions(m, rank); });
}

/// The units that every expert gives, ascending.
template <FloatOrDouble Scalar>
std::vector<std::vector<index_t>> largest_units(std::span<const expert_matrices<Scalar>> experts) {
  detail::check_gathered(experts);
  const index_t hidden = experts[0].first.rows(), count = static_cast<index_t>(experts.size());
  std::vector<std::vector<index_t>> chosen;
  for (index_t e = 0; e < count; ++e) {
    const expert_matrices<Scalar>& m = experts[as_size(e)];
    std::vector<double> sizes(as_size(hidden));
    for (index_t j = 0; j < hidden; ++j)
      sizes[as_size(j)] =
          m.first.row(j).template cast<double>().squaredNorm() + m.last.col(j).template cast<double>().squaredNorm();
    std::vector<index_t> units(as_size(hidden));
    std::iota(units.begin(), units.end(), index_t{0});
    std::stable_sort(units.begin(), units.end(),
                     [&](index_t a, index_t b) { return order_key(sizes[as_size(a)]) > order_key(sizes[as_size(b)]); });
    units.resize(as_size(hidden / count + (e < hidden % count ? 1 : 0)));
    std::sort(units.begin(), units.end());
    chosen.push_back(std::move(units));
  }
  return chosen;
}

template <FloatOrDouble Scalar>
expert_matrices<Scalar> gathered_units(std::span<const expert_matrices<Scalar>> experts) {
  const auto units = largest_units(experts);
  expert_matrices<Scalar> made{experts[0].first, experts[0].last};
  index_t at = 0;
  for (std::size_t e = 0; e < units.size(); ++e)
    for (const index_t unit : units[e]) {
      made.first.row(at) = experts[e].first.row(unit);
      made.last.col(at++) = experts[e].last.col(unit);
    }
  return made;
}

}  // namespace sluice::inline SLUICE_ISA
