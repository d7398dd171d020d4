/// What error-compensating rounding needs of a matrix's inputs: the upper factor U of the inverse second moments.
///
///   H [n,n] second moments of the inputs (quant/input_moments.hpp), any factor of it;  H' = H + damping mean(diag H) I
///   H'^-1 = U^T U, U [n,n] upper with a positive diagonal;  input order[i] stands in row and column i
///
/// A dead input, whose H[j][j] is 0, gets H[j][j] = 1 and is to count with weight 0; with keeps_dead, as in QMoE, it has
/// damping alone and its weights are rounded plainly. In order of activity the inputs
/// with the largest H[j][j] come first, the lower one among equals; damping is that of all. Where nothing was seen (H
/// is zero) or H' is not positive definite, the factor is neutral: U = I, no input is dead, and what is rounded with it
/// is rounded plainly. Throws std::invalid_argument if H is not square or holds NaN or infinity, or damping is
/// negative. n = 0 is allowed.
///
/// The inverse is never made: with the inputs in reverse order H' = R R^T, R upper, and U = R^-1. Blocks of 64, in
/// double, and equal bits for any thread count. 2/3 n^3 operations. Frantar et al. 2022 (GPTQ), arXiv:2210.17323, which
/// takes the factor of the inverse.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/error.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/kernel/gemm.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct factor_options {
  double damping = 0.01;  ///< GPTQ and GPTVQ; QMoE takes 0.1
  bool order_by_activity = false;
  bool keeps_dead = false;
};

namespace detail {

/// Rows so far apart that those below one another share no set of a cache.
inline index_t spread_pitch(index_t cols) { return (cols + 7) / 8 * 8 + 8; }

/// Lower triangular factors and their inverses, in place, by blocks.
class triangle {
public:
  static constexpr index_t block = 64;

  /// Takes the lower half of a symmetric matrix a(row, col).
  template <typename At>
  triangle(index_t n, const At& at)
      : n_(n), pitch_(spread_pitch(n)), numbers_(n * pitch_), inverses_(blocks() * block * block) {
    for (index_t r = 0; r < n; ++r)
      for (index_t c = 0; c <= r; ++c) row(r)[c] = at(r, c);
  }

  index_t blocks() const noexcept { return (n_ + block - 1) / block; }
  double* row(index_t r) noexcept { return numbers_.data() + r * pitch_; }

  /// L of A = L L^T; false if A is not positive definite.
  bool factor(const executor_ref& executor) {
    buffer<double> negative(n_ * block), across(block * spread_pitch(n_));
    for (index_t b = 0; b < blocks(); ++b) {
      const index_t first = b * block, end = last(b), width = end - first;
      if (!factor_diagonal(first, width, inverse(b))) return false;
      // L21 = A21 L11^-T, kept negated and across for the products that follow.
      const index_t across_pitch = spread_pitch(n_);
      executor.parallel_blocks(n_ - end, block, width * width / 4, [&](index_t from, index_t to) {
        for (index_t r = end + from; r < end + to; ++r) {
          double* const own = row(r) + first;
          double* const minus = negative.data() + (r - end) * block;
          for (index_t c = 0; c < width; ++c) minus[c] = -kernel::dot(own, inverse(b) + c * block, c + 1);
          for (index_t c = 0; c < width; ++c) {
            own[c] = -minus[c];
            across[c * across_pitch + r - end] = own[c];
          }
        }
      });
      executor.parallel_blocks(n_ - end, block, width * (n_ - end) / 8, [&](index_t from, index_t to) {
        kernel::multiply_nn(to - from, to, width, negative.data() + from * block, block, across.data(), across_pitch,
                            row(end + from) + end, pitch_, kernel::write::accumulate);
      });
    }
    return true;
  }

  /// put(row, first column, numbers, count) for the parts of L^-1; L must have been made.
  template <typename Put>
  void invert(const executor_ref& executor, Put&& put) {
    executor.for_work(n_ * n_ / 24 * n_).parallel_for(blocks(), [&](index_t c) {
      const index_t begin = c * block, width = last(c) - begin, pitch = block + 8;
      buffer<double> x((n_ - begin) * pitch), sums(block * pitch);  // block column c, from the diagonal down
      for (index_t b = c; b < blocks(); ++b) {
        const index_t first = b * block, rows = last(b) - first;
        double* const own = x.data() + (first - begin) * pitch;
        if (b == c) {
          for (index_t r = 0; r < rows; ++r)
            for (index_t k = 0; k < width; ++k) own[r * pitch + k] = k <= r ? inverse(c)[r * block + k] : 0;
        } else {
          kernel::multiply_nn(rows, width, first - begin, row(first) + begin, pitch_, x.data(), pitch, sums.data(),
                              pitch);
          for (index_t r = 0; r < rows; ++r) {
            std::fill_n(own + r * pitch, width, 0.0);
            for (index_t k = 0; k <= r; ++k)
              kernel::add_scaled(-inverse(b)[r * block + k], sums.data() + k * pitch, own + r * pitch, width);
          }
        }
        for (index_t r = 0; r < rows; ++r)
          put(first + r, begin, own + r * pitch, (std::min)(width, first + r + 1 - begin));
      }
    });
  }

private:
  index_t last(index_t b) const noexcept { return (std::min)(n_, (b + 1) * block); }
  /// L^-1 of diagonal block b, [block][block], lower.
  double* inverse(index_t b) noexcept { return inverses_.data() + b * block * block; }

  bool factor_diagonal(index_t first, index_t width, double* inverted) {
    for (index_t r = 0; r < width; ++r) {
      double* const own = row(first + r) + first;
      for (index_t c = 0; c <= r; ++c) {
        const double rest = own[c] - kernel::dot(own, row(first + c) + first, c);
        if (c < r) {
          own[c] = rest / row(first + c)[first + c];
        } else {
          if (!is_above(rest, 0.0) || !is_finite(rest)) return false;
          own[c] = std::sqrt(rest);
        }
      }
    }
    for (index_t c = 0; c < width; ++c)
      for (index_t r = c; r < width; ++r) {
        double sum = r == c ? 1.0 : 0.0;
        for (index_t k = c; k < r; ++k) sum -= row(first + r)[first + k] * inverted[k * block + c];
        inverted[r * block + c] = sum / row(first + r)[first + r];
      }
    return true;
  }

  index_t n_;
  index_t pitch_;
  buffer<double> numbers_;
  buffer<double> inverses_;
};

}  // namespace detail

class inverse_factor {
public:
  /// The neutral one.
  explicit inverse_factor(index_t inputs) : n_(inputs), pitch_(detail::spread_pitch(inputs)) { make_neutral(); }

  explicit inverse_factor(const matrix<double>& h, factor_options o = {}, const executor_ref& executor = {})
      : n_(h.rows()), pitch_(detail::spread_pitch(h.rows())) {
    refuse_bad(h, o);
    const bool saw_nothing = n_ == 0 || h.diagonal().maxCoeff() <= 0;
    make_neutral();
    if (saw_nothing) return;
    std::vector<double> diagonal(as_size(n_));
    for (index_t i = 0; i < n_; ++i) {
      dead_[as_size(i)] = h(i, i) == 0 && !o.keeps_dead;
      diagonal[as_size(i)] = dead_[as_size(i)] != 0 ? 1 : h(i, i);
    }
    if (o.order_by_activity)
      std::stable_sort(order_.begin(), order_.end(),
                       [&](index_t a, index_t b) { return diagonal[as_size(a)] > diagonal[as_size(b)]; });
    const double damping =
        o.damping * (std::accumulate(diagonal.begin(), diagonal.end(), 0.0) / static_cast<double>(n_));
    detail::triangle lower(n_, [&](index_t r, index_t c) {
      const index_t i = order_[as_size(n_ - 1 - r)], j = order_[as_size(n_ - 1 - c)];
      return i == j ? diagonal[as_size(i)] + damping : h(i, j);
    });
    if (!lower.factor(executor)) {
      make_neutral();
      return;
    }
    is_neutral_ = false;
    lower.invert(executor, [&](index_t r, index_t first, const double* numbers, index_t count) {
      for (index_t k = 0; k < count; ++k) u_[(n_ - 1 - r) * pitch_ + n_ - 1 - first - k] = numbers[k];
    });
  }

  index_t inputs() const noexcept { return n_; }
  /// Row i of U; what stands left of the diagonal is 0.
  const double* row(index_t i) const noexcept { return u_.data() + i * pitch_; }
  index_t pitch() const noexcept { return pitch_; }
  double diagonal(index_t i) const noexcept { return row(i)[i]; }
  /// Which input stands i-th.
  const std::vector<index_t>& order() const noexcept { return order_; }
  /// Whether the input with this number (not place) is to count with weight 0.
  bool is_dead(index_t input) const noexcept { return dead_[as_size(input)] != 0; }
  bool is_neutral() const noexcept { return is_neutral_; }

private:
  void refuse_bad(const matrix<double>& h, const factor_options& o) const {
    if (h.rows() != h.cols()) throw_invalid("second moments are square, not [", h.rows(), ", ", h.cols(), "]");
    if (!is_at_least(o.damping, 0.0)) throw_invalid("the damping of second moments is at least 0, not ", o.damping);
    for (index_t i = 0; i < n_; ++i)
      for (index_t j = 0; j < n_; ++j)
        if (!is_finite(h(i, j))) throw_invalid("the second moment of inputs ", i, " and ", j, " is ", h(i, j));
  }
  void make_neutral() {
    is_neutral_ = true;
    order_.resize(as_size(n_));
    std::iota(order_.begin(), order_.end(), index_t(0));
    dead_.assign(as_size(n_), 0);
    u_.assign(n_ * pitch_, 0.0);
    for (index_t i = 0; i < n_; ++i) u_[i * pitch_ + i] = 1;
  }

  index_t n_ = 0;
  index_t pitch_ = 0;
  bool is_neutral_ = true;
  std::vector<index_t> order_;
  std::vector<std::uint8_t> dead_;
  buffer<double> u_;
};

}  // namespace sluice::inline SLUICE_ISA
