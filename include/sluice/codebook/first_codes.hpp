/// Codes to begin with: rows of the data, drawn.
///
///   random_rows   C different rows, each as likely as any other; where there are fewer, they come again
///   spread_rows   k-means++: the first by weight, each further one by weight times the squared distance to the nearest
///                 code so far; where all distances are zero, by weight
///
/// Rows that hold NaN, or whose weight is zero, are never drawn. Draws depend on the random source and the data alone:
/// equal bits for any thread count. spread_rows reads x once a code. Where no row can be drawn they throw
/// std::invalid_argument.
/// Arthur and Vassilvitskii 2007, "k-means++: the advantages of careful seeding".
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/error.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/random.hpp>
#include <sluice/kernel/top_k.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <span>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Scalar>
Scalar token_weight(std::span<const Scalar> weights, index_t row) noexcept {
  return weights.empty() ? Scalar(1) : weights[as_size(row)];
}

/// The rows that may be drawn. Throws std::invalid_argument if there are none.
template <typename Scalar>
buffer<index_t> rows_to_draw(tokens_in<Scalar> x, std::span<const Scalar> weights) {
  buffer<index_t> rows;
  rows.reserve(x.rows());
  for (index_t t = 0; t < x.rows(); ++t)
    if (token_weight(weights, t) > 0 && !any_nan(x.data() + t * x.outerStride(), x.cols())) rows.push_back(t);
  if (rows.empty()) throw_invalid("there is no row to begin a code with among ", x.rows());
  return rows;
}

}  // namespace detail

/// codes [C,D] become rows of x [T,D]. `weights` has none or one a row, as everywhere in k-means.
struct random_rows {
  random_source random;

  template <FloatOrDouble Scalar>
  void operator()(tokens_in<Scalar> x, std::span<const Scalar> weights, matrix_map<Scalar> codes,
                  const executor_ref&) const {
    const buffer<index_t> rows = detail::rows_to_draw<Scalar>(x, weights);
    buffer<double> lots(rows.size());
    for (index_t i = 0; i < rows.size(); ++i) lots[i] = random.uniform(random_site("kmeans.random_rows"), rows[i]);
    buffer<index_t> drawn((std::min)(codes.rows(), rows.size()));
    kernel::top_k(lots.data(), rows.size(), drawn.size(), drawn.data());
    for (index_t c = 0; c < codes.rows(); ++c) codes.row(c) = x.row(rows[drawn[c % drawn.size()]]);
  }
};

struct spread_rows {
  random_source random;

  template <FloatOrDouble Scalar>
  void operator()(tokens_in<Scalar> x, std::span<const Scalar> weights, matrix_map<Scalar> codes,
                  const executor_ref& executor) const {
    constexpr index_t block = 256;
    const buffer<index_t> rows = detail::rows_to_draw<Scalar>(x, weights);
    buffer<Scalar> distances(rows.size(), Scalar(1));  // so that the first is drawn by weight
    buffer<double> sums((rows.size() + block - 1) / block);
    const auto chance = [&](index_t i) {
      return static_cast<double>(distances[i]) * static_cast<double>(detail::token_weight(weights, rows[i]));
    };
    const auto measure = [&](auto&& distance) {
      executor.parallel_blocks(rows.size(), block, x.cols(), [&](index_t begin, index_t end) {
        double sum = 0;
        for (index_t i = begin; i < end; ++i) {
          distances[i] = distance(i);
          sum += chance(i);
        }
        sums[begin / block] = sum;
      });
    };
    measure([](index_t) { return Scalar(1); });
    for (index_t c = 0; c < codes.rows(); ++c) {
      double total = 0;
      for (const double sum : sums) total += sum;
      if (!(total > 0)) {  // every row is a code already
        measure([](index_t) { return Scalar(1); });
        for (const double sum : sums) total += sum;
      }
      double left = random.uniform(random_site("kmeans.spread_rows"), c) * total;
      index_t b = 0;
      while (b + 1 < sums.size() && left >= sums[b]) left -= sums[b++];
      const index_t end = (std::min)(rows.size(), (b + 1) * block);
      index_t drawn = b * block, last = drawn;
      for (; drawn < end; left -= chance(drawn), ++drawn) {
        if (chance(drawn) > 0) last = drawn;
        if (left < chance(drawn)) break;
      }
      codes.row(c) = x.row(rows[drawn < end ? drawn : last]);
      const Scalar* const code = codes.data() + c * codes.cols();
      measure([&](index_t i) {
        const Scalar* const row = x.data() + rows[i] * x.outerStride();
        return c == 0 ? kernel::squared_difference(row, code, x.cols())
                      : (std::min)(distances[i], kernel::squared_difference(row, code, x.cols()));
      });
    }
  }
};

}  // namespace sluice::inline SLUICE_ISA
