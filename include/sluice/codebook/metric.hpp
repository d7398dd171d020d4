/// What near means for a vector quantiser: keys and offsets, so that the code with the greatest x . key + offset is the
/// nearest.
///
///   squared_distance    key c, offset -|c|^2 / 2      the same order as -|x - c|^2
///   cosine_similarity   key c / |c|                   the size of x changes no choice; a zero code has score 0
///   inner_product       key c
///
/// Only the search is meant: the output is the code itself, and losses compare x with it. For tokens and codes of unit
/// length put the quantiser behind unit_rows (codebook/structure/unit_rows.hpp). Equal scores: the lowest code. Codes
/// that hold NaN are never chosen.
#pragma once

#include <sluice/codebook/quantized_batch.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

namespace sluice::inline SLUICE_ISA {

struct squared_distance {
  using role = metric_role;

  template <typename Scalar>
  void prepare(const_matrix_map<Scalar> codes, code_search<Scalar>& search, const executor_ref& executor) const {
    search.set_keys(codes);
    Scalar* offsets = search.offsets(codes.rows()).data();
    executor.parallel_each(codes.rows(), codes.cols() / 4, [&](index_t c) {
      const Scalar* code = codes.data() + c * codes.cols();
      offsets[c] = -kernel::dot(code, code, codes.cols()) / 2;
    });
  }

private:
  static constexpr index_t codes_per_task = 64;
};

struct inner_product {
  using role = metric_role;

  template <typename Scalar>
  void prepare(const_matrix_map<Scalar> codes, code_search<Scalar>& search, const executor_ref&) const {
    search.set_keys(codes);
    search.no_offsets();
  }
};

struct cosine_similarity {
  using role = metric_role;

  template <typename Scalar>
  void prepare(const_matrix_map<Scalar> codes, code_search<Scalar>& search, const executor_ref& executor) const {
    Scalar* keys = search.own_keys(codes.rows(), codes.cols()).data();
    search.no_offsets();
    executor.parallel_each(codes.rows(), codes.cols() / 2, [&](index_t c) {
      const Scalar* code = codes.data() + c * codes.cols();
      const Scalar length = std::sqrt(kernel::dot(code, code, codes.cols()));
      kernel::copy_scaled(1 / (std::max)(length, (std::numeric_limits<Scalar>::min)()), code, keys + c * codes.cols(),
                          codes.cols());
    });
  }

private:
  static constexpr index_t codes_per_task = 64;
};

}  // namespace sluice::inline SLUICE_ISA
