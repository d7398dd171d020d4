/// Codes for vectors of weights by Lloyd's rounds in which every number has a weight of its own, and a start for them.
///
///   ids[n]  = argmin over k of sum over d of h[n,d] (x[n,d] - c[k,d])^2             x [N,D], h [N,D] or none: ones
///   c[k,d]  = sum of h[n,d] x[n,d] / sum of h[n,d], over the n with ids[n] = k       c [K,D]
///
///   start   rows of x, evenly spaced by rank of (x - mean)^T S^-1 (x - mean), S = sum of (x - mean)(x - mean)^T; where
///           S has no inverse, 1e-6 of its trace is added to its diagonal
///
/// k-means (codebook/kmeans.hpp) has a weight a row; here a column may count more than its neighbour in the same
/// vector. Equal distances, the lowest code; equal ranks, the first row. Where the weights of a number sum to zero, an
/// empty code say, the number stays, or becomes 0 as in the released code. Fewer rows than codes: all rows are codes,
/// some twice. A row that holds NaN has no code and is in no mean; N = 0 changes nothing. Sums run in the order of the
/// rows: equal bits for any thread count. van Baalen et al. 2024, "GPTVQ: The Blessing of Dimensionality for LLM
/// Quantization", arXiv:2402.15319.
#pragma once

#include <sluice/codebook/metric.hpp>
#include <sluice/codebook/nearest.hpp>
#include <sluice/core/error.hpp>
#include <sluice/kernel/small_svd.hpp>

#include <algorithm>
#include <numeric>
#include <span>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// What becomes of a number of a code whose weights sum to zero.
enum class unweighed { keep, zero };

/// The nearest code of every row, by weights of every number.
template <FloatOrDouble Scalar>
class weighted_search {
public:
  /// ids [N]; h [N,D], or [0,0] for ones. Throws std::invalid_argument if shapes do not fit.
  void operator()(tokens_in<Scalar> x, tokens_in<Scalar> h, const_matrix_map<Scalar> codes, index_t* ids,
                  const executor_ref& executor = {}) {
    if (h.size() != 0) {
      check_shapes(x, h, codes);
      products_ = h.cwiseProduct(x);
      of_products(products_, h, codes, ids, executor);
      return;
    }
    check_shapes(x, x, codes);
    squared_distance{}.prepare<Scalar>(codes, search_, executor);
    nearest_codes<Scalar>(x, search_, matrix_map<index_t>(ids, x.rows(), 1), nullptr, scratch_, executor);
  }

  /// The same where h x is known and x may not be: a row with weight 0 has no say, whatever x is.
  void of_products(tokens_in<Scalar> hx, tokens_in<Scalar> h, const_matrix_map<Scalar> codes, index_t* ids,
                   const executor_ref& executor = {}) {
    check_shapes(hx, h, codes);
    // -h (x - c)^2 / 2 is [h x, h] . [c, -c^2 / 2], but for what is the same for all codes.
    const index_t width = hx.cols();
    rows_.resize(hx.rows(), 2 * width);
    rows_.leftCols(width) = hx;
    rows_.rightCols(width) = h;
    matrix_map<Scalar> keys = search_.own_keys(codes.rows(), 2 * width);
    keys.leftCols(width) = codes;
    keys.rightCols(width) = codes.array().square() / -2;
    search_.no_offsets();
    nearest_codes<Scalar>(rows_, search_, matrix_map<index_t>(ids, hx.rows(), 1), nullptr, scratch_, executor);
  }

  /// The same where all rows have the weights h [D].
  void by_columns(tokens_in<Scalar> x, std::span<const Scalar> h, const_matrix_map<Scalar> codes, index_t* ids,
                  const executor_ref& executor = {}) {
    check_shapes(x, x, codes);
    if (static_cast<index_t>(h.size()) != x.cols())
      throw_invalid("columns of rows [", x.rows(), ", ", x.cols(), "] have ", x.cols(), " weights, not ", h.size());
    matrix_map<Scalar> keys = search_.own_keys(codes.rows(), codes.cols());
    const std::span<Scalar> offsets = search_.offsets(codes.rows());
    for (index_t k = 0; k < codes.rows(); ++k) {
      offsets[as_size(k)] = 0;
      for (index_t d = 0; d < codes.cols(); ++d) {
        keys(k, d) = h[as_size(d)] * codes(k, d);
        offsets[as_size(k)] -= keys(k, d) * codes(k, d) / 2;
      }
    }
    nearest_codes<Scalar>(x, search_, matrix_map<index_t>(ids, x.rows(), 1), nullptr, scratch_, executor);
  }

private:
  static void check_shapes(tokens_in<Scalar> x, tokens_in<Scalar> h, const_matrix_map<Scalar> codes) {
    if (codes.cols() != x.cols() || h.rows() != x.rows() || h.cols() != x.cols())
      throw_invalid("codes of ", codes.cols(), " numbers are none of rows [", x.rows(), ", ", x.cols(),
                    "] with weights [", h.rows(), ", ", h.cols(), "]");
  }

  matrix<Scalar> products_, rows_;
  code_search<Scalar> search_;
  nearest_scratch<Scalar> scratch_;
};

/// K rows of x to begin with. Throws std::invalid_argument if K < 1, x has no rows or holds a number that is not
/// finite.
template <FloatOrDouble Scalar>
matrix<Scalar> codes_by_rank(tokens_in<Scalar> x, index_t codes) {
  const index_t rows = x.rows(), width = x.cols();
  if (codes < 1 || rows < 1) throw_invalid("there are no ", codes, " codes to begin with among ", rows, " rows");
  const matrix<double> centred = x.template cast<double>().rowwise() - x.template cast<double>().colwise().mean();
  const matrix<double> spread = centred.transpose() * centred;
  if (!is_between(spread.trace(), 0.0, (std::numeric_limits<double>::max)()))
    throw_invalid("codes cannot begin among ", rows, " rows that hold NaN, or numbers past all bounds");
  const kernel::small_svd axes(spread);
  const double least = axes.s(width - 1, 0), padding = least > 1e-12 * axes.s(0, 0) ? 0 : 1e-6 * spread.trace();
  std::vector<double> distance(as_size(rows), 0.0);  // one point, many times: every rank is zero
  if (axes.s(0, 0) > 0)
    for (index_t n = 0; n < rows; ++n) {
      const matrix<double> along = centred.row(n) * axes.u;
      for (index_t d = 0; d < width; ++d) distance[as_size(n)] += along(0, d) * along(0, d) / (axes.s(d, 0) + padding);
    }
  std::vector<index_t> order(as_size(rows));
  std::iota(order.begin(), order.end(), index_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](index_t a, index_t b) { return distance[as_size(a)] < distance[as_size(b)]; });
  matrix<Scalar> first(codes, width);
  for (index_t k = 0; k < codes; ++k) {
    // k (N - 1) / (K - 1) to the nearest, halves to the even one.
    const index_t steps = (std::max)(codes - 1, index_t{1}), place = k * (rows - 1), whole = place / steps;
    const index_t twice = 2 * (place % steps);
    first.row(k) = x.row(order[as_size(whole + (twice > steps || (twice == steps && whole % 2 == 1) ? 1 : 0))]);
  }
  return first;
}

/// So many rounds from the codes given. Throws std::invalid_argument if shapes do not fit or a weight is negative or
/// NaN.
template <FloatOrDouble Scalar>
void weighted_lloyd(tokens_in<Scalar> x, tokens_in<Scalar> h, matrix<Scalar>& codes, index_t rounds,
                    unweighed empty = unweighed::keep, const executor_ref& executor = {}) {
  for (index_t n = 0; n < h.rows(); ++n)
    for (index_t d = 0; d < h.cols(); ++d)
      if (!is_at_least(h(n, d), Scalar(0))) throw_invalid("number ", d, " of row ", n, " has the weight ", h(n, d));
  weighted_search<Scalar> search;
  std::vector<index_t> ids(as_size(x.rows()));
  matrix<double> sums(codes.rows(), codes.cols()), weights(codes.rows(), codes.cols());
  for (index_t round = 0; round < rounds && x.rows() > 0; ++round) {
    search(x, h, const_matrix_map<Scalar>(codes.data(), codes.rows(), codes.cols()), ids.data(), executor);
    sums.setZero();
    weights.setZero();
    for (index_t n = 0; n < x.rows(); ++n) {
      const index_t id = ids[as_size(n)];
      if (id == no_code) continue;
      for (index_t d = 0; d < x.cols(); ++d) {
        const double weight = h.size() == 0 ? 1 : static_cast<double>(h(n, d));
        sums(id, d) += weight * static_cast<double>(x(n, d));
        weights(id, d) += weight;
      }
    }
    for (index_t k = 0; k < codes.rows(); ++k)
      for (index_t d = 0; d < codes.cols(); ++d)
        if (weights(k, d) > 0)
          codes(k, d) = static_cast<Scalar>(sums(k, d) / weights(k, d));
        else if (empty == unweighed::zero)
          codes(k, d) = 0;
  }
}

}  // namespace sluice::inline SLUICE_ISA
