/// Matrix products on row-major blocks, the three shapes that a linear map y = x W^T needs forward and backward.
///
///   multiply_nt   C [m,n] (+)= A [m,k] * B [n,k]^T      y = x W^T: both operands run along k
///   multiply_nn   C [m,n] (+)= A [m,k] * B [k,n]        dx = dy W
///   multiply_tn   C [m,n] (+)= A [k,m]^T * B [k,n]      dW = dy^T x
///
/// Every element of C is summed along k in one order that depends on k and on its column only, so C may be cut into
/// blocks of rows anywhere and gives the same bits. Leading dimensions (lda ...) are distances between rows.
/// Nothing is allocated and nothing is read past the blocks. k = 0 gives zero (or leaves C when accumulating).
#pragma once

#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <bit>
#include <utility>

namespace sluice::inline SLUICE_ISA::kernel {

enum class write { replace, accumulate };

namespace detail {

/// Calls f with an integral_constant of value = count for 1 <= count <= Max.
template <int Max, typename F>
void with_constant(index_t count, F&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) {
    (void)((count == I + 1 ? (f(std::integral_constant<int, I + 1>{}), true) : false) || ...);
  }
  (std::make_integer_sequence<int, Max>{});
}

template <typename Scalar>
void put(Scalar& place, Scalar value, write mode) noexcept {
  place = mode == write::accumulate ? place + value : value;
}

/// Rows x Cols dot products along k. Every dot product is one vector accumulator, and then the sum of its lanes.
template <int Rows, int Cols, typename Scalar>
void dot_tile(index_t k, const Scalar* a, index_t lda, const Scalar* b, index_t ldb, Scalar* c, index_t ldc,
              write mode) {
  constexpr index_t width = simd_width<Scalar>, count = Rows * Cols;
  simd<Scalar> sums[as_size(count)];
  SLUICE_UNROLL for (index_t i = 0; i < count; ++i) sums[i] = simd<Scalar>(Scalar(0));
  const auto step = [&](const auto& load_from, index_t p) {
    simd<Scalar> columns[as_size(Cols)];
    SLUICE_UNROLL for (int j = 0; j < Cols; ++j) {
      simd<Scalar> column = load_from(b + j * ldb + p);  // by itself: given as a reference, an array stays in memory
      keep_in_register<Scalar>(column);
      columns[j] = column;
    }
    SLUICE_UNROLL for (int i = 0; i < Rows; ++i) {
      simd<Scalar> row = load_from(a + i * lda + p);
      keep_in_register<Scalar>(row);
      SLUICE_UNROLL for (int j = 0; j < Cols; ++j) sums[i * Cols + j] =
          multiply_add<Scalar>(row, columns[j], sums[i * Cols + j]);
    }
  };
  index_t p = 0;
  for (; p + width <= k; p += width) step([](const Scalar* from) { return load(from); }, p);
  // In vectors too: -ffast-math sums a loop over single numbers in an order that depends on the tile.
  if (p < k) step([&](const Scalar* from) { return load_part(from, k - p, Scalar(0)); }, p);
  // As many sums at a time as a vector holds; the last one stands in for those that are not there.
  constexpr index_t together = (std::min)(width, static_cast<index_t>(std::bit_ceil(as_size(count))));
  Scalar totals[as_size(count + 2 * width)];
  SLUICE_UNROLL for (index_t first = 0; first < count; first += together) {
    simd<Scalar> some[as_size(together)];
    SLUICE_UNROLL for (index_t i = 0; i < together; ++i) some[i] = sums[(std::min)(first + i, count - 1)];
    store<Scalar>(totals + first, sums_of_lanes<Scalar>(some));
  }
  if (mode == write::accumulate)
    SLUICE_UNROLL for (int i = 0; i < Rows; ++i) SLUICE_UNROLL for (int j = 0; j < Cols; ++j) totals[i * Cols + j] =
        c[i * ldc + j] + totals[i * Cols + j];
  SLUICE_UNROLL for (int i = 0; i < Rows; ++i) std::copy_n(totals + i * Cols, Cols, c + i * ldc);
}

/// Rows x (Vectors vectors) of C, where A(i,p) = a[i*ai + p*ap].
template <int Rows, int Vectors, typename Scalar>
void outer_tile(index_t k, const Scalar* a, index_t ai, index_t ap, const Scalar* b, index_t ldb, Scalar* c,
                index_t ldc, write mode) {
  constexpr index_t width = simd_width<Scalar>;
  simd<Scalar> sums[as_size(Rows)][as_size(Vectors)];
  SLUICE_UNROLL for (int i = 0; i < Rows; ++i) SLUICE_UNROLL for (int j = 0; j < Vectors; ++j) sums[i][j] =
      simd<Scalar>(Scalar(0));
  for (index_t p = 0; p < k; ++p) {
    simd<Scalar> columns[as_size(Vectors)];
    SLUICE_UNROLL for (int j = 0; j < Vectors; ++j) {
      simd<Scalar> column = load(b + p * ldb + j * width);  // by itself, as above
      keep_in_register<Scalar>(column);
      columns[j] = column;
    }
    SLUICE_UNROLL for (int i = 0; i < Rows; ++i) {
      const simd<Scalar> factor(a[i * ai + p * ap]);
      SLUICE_UNROLL for (int j = 0; j < Vectors; ++j) sums[i][j] = multiply_add<Scalar>(factor, columns[j], sums[i][j]);
    }
  }
  SLUICE_UNROLL for (int i = 0; i < Rows; ++i) SLUICE_UNROLL for (int j = 0; j < Vectors; ++j) {
    Scalar* place = c + i * ldc + j * width;
    store<Scalar>(place, mode == write::accumulate ? load(place) + sums[i][j] : sums[i][j]);
  }
}

template <typename Scalar>
void outer_edge(index_t rows, index_t cols, index_t k, const Scalar* a, index_t ai, index_t ap, const Scalar* b,
                index_t ldb, Scalar* c, index_t ldc, write mode) {
  for (index_t i = 0; i < rows; ++i)
    for (index_t j = 0; j < cols; ++j) {
      Scalar sum = 0;
      for (index_t p = 0; p < k; ++p) sum += a[i * ai + p * ap] * b[p * ldb + j];
      put(c[i * ldc + j], sum, mode);
    }
}

/// C [m,n] (+)= A * B with A(i,p) = a[i*ai + p*ap] and rows of B along n.
template <typename Scalar>
void multiply_outer(index_t m, index_t n, index_t k, const Scalar* a, index_t ai, index_t ap, const Scalar* b,
                    index_t ldb, Scalar* c, index_t ldc, write mode) {
  // 14 x 2 accumulators, 2 columns of B and 1 broadcast fit the 32 registers of AVX-512 and, with 4 rows, the 16 of
  // AVX2. Rows are cut into tiles of about equal height: a low one reads as much of B for less.
  constexpr int rows_max = sizeof(simd<Scalar>) >= 64 ? 14 : 4;
  constexpr index_t width = simd_width<Scalar>;
  const index_t tiles = (m + rows_max - 1) / rows_max;
  index_t j = 0;
  const auto column_block = [&]<int Vectors>(std::integral_constant<int, Vectors>) {
    for (index_t t = 0; t < tiles; ++t) {
      const index_t i = m * t / tiles;
      with_constant<rows_max>(m * (t + 1) / tiles - i, [&]<int Rows>(std::integral_constant<int, Rows>) {
        outer_tile<Rows, Vectors>(k, a + i * ai, ai, ap, b + j, ldb, c + i * ldc + j, ldc, mode);
      });
    }
  };
  for (; j + 2 * width <= n; j += 2 * width) column_block(std::integral_constant<int, 2>{});
  for (; j + width <= n; j += width) column_block(std::integral_constant<int, 1>{});
  if (j < n) outer_edge(m, n - j, k, a, ai, ap, b + j, ldb, c + j, ldc, mode);
}

}  // namespace detail

template <typename Scalar>
void multiply_nt(index_t m, index_t n, index_t k, const Scalar* a, index_t lda, const Scalar* b, index_t ldb, Scalar* c,
                 index_t ldc, write mode = write::replace) {
  // 4 x 4 accumulators and 5 operands: two fused multiply-adds a load, within 32 registers; half as many rows for 16.
  constexpr int rows_max = sizeof(simd<Scalar>) >= 64 ? 4 : 2;
  constexpr int cols_max = 4;
  // Rows of A meet as many rows of B as stay in the first cache, which are read from afar only once.
  constexpr index_t close_by = 16 * 1024 / static_cast<index_t>(sizeof(Scalar));
  const index_t block = (std::max<index_t>)(1, close_by / (std::max<index_t>)(1, k) / cols_max) * cols_max;
  for (index_t first = 0; first < n; first += block)
    for (index_t i = 0; i < m; i += rows_max)
      detail::with_constant<rows_max>(
          std::min<index_t>(rows_max, m - i), [&]<int Rows>(std::integral_constant<int, Rows>) {
            for (index_t j = first; j < (std::min)(n, first + block); j += cols_max)
              detail::with_constant<cols_max>(
                  std::min<index_t>(cols_max, n - j), [&]<int Cols>(std::integral_constant<int, Cols>) {
                    detail::dot_tile<Rows, Cols>(k, a + i * lda, lda, b + j * ldb, ldb, c + i * ldc + j, ldc, mode);
                  });
          });
}

template <typename Scalar>
void multiply_nn(index_t m, index_t n, index_t k, const Scalar* a, index_t lda, const Scalar* b, index_t ldb, Scalar* c,
                 index_t ldc, write mode = write::replace) {
  detail::multiply_outer(m, n, k, a, lda, index_t(1), b, ldb, c, ldc, mode);
}

template <typename Scalar>
void multiply_tn(index_t m, index_t n, index_t k, const Scalar* a, index_t lda, const Scalar* b, index_t ldb, Scalar* c,
                 index_t ldc, write mode = write::replace) {
  detail::multiply_outer(m, n, k, a, index_t(1), lda, b, ldb, c, ldc, mode);
}

}  // namespace sluice::inline SLUICE_ISA::kernel
