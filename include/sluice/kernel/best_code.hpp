/// Which of C rows of keys has the greatest product with a row of x: the search of codebooks.
///
///   ids[t] = arg max over c of  x[t] . keys[c] + offsets[c]          scores[t] = the maximum
///
/// With offsets -|c|^2 / 2 it is the nearest code, with none the greatest inner product. Equal scores: the lowest c.
/// A row of x that holds NaN gets no_code, as does one whose scores are all NaN; keys that hold NaN are never taken.
/// Every score is one chain along D, so a row's result depends neither on its neighbours nor on how rows are cut.
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/kernel/gemm.hpp>

#include <array>

namespace sluice::inline SLUICE_ISA {

/// In the place of a code: what hidden tokens get.
inline constexpr index_t no_code = -1;

namespace kernel {

template <typename Scalar>
struct code_keys {
  const Scalar* keys = nullptr;     ///< [C,D], rows `stride` apart
  index_t stride = 0;
  const Scalar* offsets = nullptr;  ///< [C], or null: zeros
  index_t count = 0;
  index_t width = 0;
};

/// ids [rows] and, unless null, scores [rows] for rows of x that lie x_stride apart.
template <typename Scalar>
void best_code(const Scalar* x, index_t x_stride, index_t rows, const code_keys<Scalar>& k, index_t* ids, index_t ids_stride,
               Scalar* scores) {
  constexpr index_t row_block = 8, code_block = 32;
  std::array<Scalar, as_size(row_block* code_block)> products;
  for (index_t first = 0; first < rows; first += row_block) {
    const index_t m = std::min(row_block, rows - first);
    std::array<Scalar, as_size(row_block)> best;
    for (index_t i = 0; i < m; ++i) ids[(first + i) * ids_stride] = no_code;
    for (index_t c = 0; c < k.count; c += code_block) {
      const index_t n = std::min(code_block, k.count - c);
      multiply_nt(m, n, k.width, x + first * x_stride, x_stride, k.keys + c * k.stride, k.stride, products.data(), code_block);
      for (index_t i = 0; i < m; ++i) {
        index_t& id = ids[(first + i) * ids_stride];
        for (index_t j = 0; j < n; ++j) {
          Scalar score = products[as_size(i * code_block + j)];
          if (k.offsets != nullptr) score += k.offsets[c + j];
          if (is_nan(score) || !(id == no_code || score > best[as_size(i)])) continue;
          best[as_size(i)] = score;
          id = c + j;
        }
      }
    }
    if (scores != nullptr)
      for (index_t i = 0; i < m; ++i)
        scores[first + i] = ids[(first + i) * ids_stride] == no_code ? quiet_nan<Scalar>() : best[as_size(i)];
  }
}

}  // namespace kernel

}  // namespace sluice::inline SLUICE_ISA
