/// Logits of a Gaussian mixture's components: how near each part of a token is to each of the part's codes.
///
///   x [T,M d], codes c [M K,d], theta [M]      l[t,m,k] = -|x_tm - c_mk|^2 max(theta_m, 1e-6) / sqrt(K)
///
/// Squares are taken from products and norms, and clamped at 0. Backward adds to dx, dc and dtheta; where theta_m is
/// below the least its gradient is 0. Equal bits for every executor.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/kernel/gemm.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <cmath>

namespace sluice::inline SLUICE_ISA::detail {

template <typename Scalar>
struct mixture_codes {
  static constexpr index_t tokens_per_task = 16, codes_per_task = 32;
  static constexpr double least_temperature = 1e-6;

  const Scalar* table;        ///< [M K,d]
  const Scalar* temperature;  ///< [M]
  index_t parts;
  index_t codes;
  index_t width;

  const Scalar* code(index_t m, index_t k) const noexcept { return table + (m * codes + k) * width; }
  /// What squares are multiplied by to become logits.
  Scalar heat(index_t m) const {
    return (std::max)(temperature[m], static_cast<Scalar>(least_temperature)) / std::sqrt(static_cast<Scalar>(codes));
  }

  /// logits [T,M K]; squares are scratch.
  void score(tokens_in<Scalar> x, matrix_buffer<Scalar>& logits, buffer<Scalar>& squares,
             const executor_ref& executor) const {
    const index_t all = parts * codes;
    logits.resize(x.rows(), all);
    squares.resize(all);
    for (index_t k = 0; k < all; ++k) squares[k] = kernel::dot(code(0, k), code(0, k), width);
    executor.parallel_blocks(x.rows(), tokens_per_task, all * width / 4, [&](index_t begin, index_t end) {
      for (index_t m = 0; m < parts; ++m) {
        const Scalar* part = x.data() + begin * x.outerStride() + m * width;
        Scalar* to = logits.row(begin) + m * codes;
        kernel::multiply_nt(end - begin, codes, width, part, x.outerStride(), code(m, 0), width, to, all);
        for (index_t i = 0; i < end - begin; ++i) {
          const Scalar square = kernel::dot(part + i * x.outerStride(), part + i * x.outerStride(), width);
          for (index_t k = 0; k < codes; ++k) {
            Scalar& l = to[i * all + k];
            l = -heat(m) * (std::max)(square + squares[m * codes + k] - 2 * l, Scalar(0));
          }
        }
      }
    });
  }

  /// For dlogits [T,M K], zero where a token is hidden.
  void backward(tokens_in<Scalar> x, const matrix_buffer<Scalar>& logits, const matrix_buffer<Scalar>& dlogits,
                tokens_out<Scalar> dx, Scalar* dtable, Scalar* dtemperature, const executor_ref& executor) const {
    const index_t tokens = x.rows(), all = parts * codes;
    const auto part_of = [&](index_t i, index_t m) { return x.data() + i * x.outerStride() + m * width; };
    executor.parallel_each(tokens, all * width / 4, [&](index_t i) {
      for (index_t j = 0; j < all; ++j) {
        const index_t m = j / codes;
        const Scalar d = 2 * heat(m) * dlogits(i, j);
        if (d == 0) continue;
        Scalar* const to = dx.data() + i * dx.outerStride() + m * width;
        kernel::add_scaled(-d, part_of(i, m), to, width);
        kernel::add_scaled(d, code(0, j), to, width);
      }
    });
    executor.parallel_blocks(all, codes_per_task, tokens * width / 2, [&](index_t begin, index_t end) {
      for (index_t i = 0; i < tokens; ++i)
        for (index_t j = begin; j < end; ++j) {
          const Scalar d = 2 * heat(j / codes) * dlogits(i, j);
          if (d == 0) continue;
          kernel::add_scaled(d, part_of(i, j / codes), dtable + j * width, width);
          kernel::add_scaled(-d, code(0, j), dtable + j * width, width);
        }
    });
    for (index_t i = 0; i < tokens; ++i)
      for (index_t j = 0; j < all; ++j) {
        const Scalar theta = temperature[j / codes];
        if (dlogits(i, j) != 0 && theta > static_cast<Scalar>(least_temperature))
          dtemperature[j / codes] += dlogits(i, j) * logits(i, j) / theta;
      }
  }
};

}  // namespace sluice::inline SLUICE_ISA::detail
