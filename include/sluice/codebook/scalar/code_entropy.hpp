/// Entropies of soft choices among all 2^B signs of B numbers: how sure each token is, and how many codes a batch uses.
///
///   z [T,D], D = G B: parts of B numbers, each with 2^B codes of +-1, the first number most significant
///   p[t,g,c] = softmax over c of sharpness z[t,g] . sign(c)  =  product over the numbers of logistic(+-2 sharpness z)
///   q[g,c] = mean over t of p[t,g,c]
///   per_sample = mean over t of sum over g of H(p[t,g])          batch = sum over g of H(q[g])
///
/// H(p) = -sum of p log p, guarded as the published code does:  clamped_logarithm  log max(p, 1e-5)
///                                                              added_logarithm    log (p + 1e-8)
/// Tokens that do not count have no part in either; with none that counts both are 0.
///
/// Cost: all codes are summed, T G 2^B products and logarithms forward and as many backward, but the exponentials are
/// T D. Memory: G 2^B sums and 2 T D factors; of p no more than 256 numbers a task. Parts of fewer numbers cost less,
/// and their batch is at least the whole's; of one number each they cost O(D). Guards apart, per_sample is the same for
/// all.
/// Gradients are exact, guards included. Equal bits for every executor and thread count.
/// Yu et al. 2024 (MAGVIT-v2), arXiv:2310.05737; Zhao et al. 2025 (BSQ), arXiv:2406.07548.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/error.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/kernel/activation.hpp>
#include <sluice/kernel/logistic.hpp>
#include <sluice/kernel/logarithm.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <concepts>

namespace sluice::inline SLUICE_ISA {

struct clamped_logarithm {
  static constexpr double floor = 1e-5;

  template <typename V>
  static V value(V p) {
    using std::max;
    return kernel::logarithm(max(p, detail::constant<V>(floor)));
  }
  /// d (p value(p)) / d p.
  template <typename V>
  static V slope(V p) {
    if constexpr (std::floating_point<V>)
      return value(p) + (p < detail::constant<V>(floor) ? V(0) : V(1));
    else
      return value(p) + select(p < detail::constant<V>(floor), detail::constant<V>(0), detail::constant<V>(1));
  }
};

struct added_logarithm {
  static constexpr double added = 1e-8;

  template <typename V>
  static V value(V p) {
    return kernel::logarithm(p + detail::constant<V>(added));
  }
  template <typename V>
  static V slope(V p) {
    return value(p) + p / (p + detail::constant<V>(added));
  }
};

template <FloatOrDouble Scalar, typename Logarithm>
class code_entropy {
public:
  static constexpr index_t most_bits = 30;

  /// Throws std::invalid_argument unless parts of this width have at most 2^30 codes and divide D.
  static void check_part(index_t width, index_t inputs) {
    if (width < 1 || width > most_bits || inputs % width != 0)
      throw_invalid("entropies are summed over the codes of 1 to ", most_bits, " numbers that divide ", inputs,
                    ", not of ", width);
  }

  double per_sample = 0;
  double batch = 0;

  /// q [G, 2^B] of the last forward call.
  const matrix_buffer<double>& mean_probabilities() const noexcept { return mean_; }

  /// counts(t): whether token t has a part.
  template <typename Counts>
  void forward(tokens_in<Scalar> z, Counts&& counts, index_t part, Scalar sharpness, const executor_ref& executor) {
    part_ = part, sharpness_ = sharpness;
    keep_factors(z, counts, executor);
    const index_t parts = z.cols() / part, range_count = ranges();
    mean_.resize(parts, index_t(1) << part);
    slopes_.resize(parts, index_t(1) << part);
    shares_.resize(parts * range_count);
    const auto count = static_cast<double>(tokens_.size());
    executor.parallel_blocks(parts * range_count, 1, tokens_.size() * range_size() * 8,
                             [&](index_t begin, index_t end) {
                               for (index_t task = begin; task < end; ++task)
                                 shares_[task] = sum_range(task / range_count, task % range_count);
                             });
    per_sample = batch = 0;
    if (tokens_.empty()) return;
    for (const double share : shares_) per_sample += share / count;
    for (index_t i = 0; i < mean_.size(); ++i) {
      double& q = mean_.data()[i];
      q /= count;
      batch -= q * Logarithm::value(q);
    }
  }

  /// Adds to dx the gradient of per_sample_weight per_sample + batch_weight batch, of the last forward call.
  void backward(Scalar per_sample_weight, Scalar batch_weight, tokens_out<Scalar> dx, const executor_ref& executor) {
    if (tokens_.empty()) return;
    const Scalar each = 1 / static_cast<Scalar>(tokens_.size());
    for (index_t i = 0; i < mean_.size(); ++i)
      slopes_.data()[i] = -batch_weight * each * static_cast<Scalar>(Logarithm::slope(mean_.data()[i]));
    executor.parallel_blocks(tokens_.size(), 4, mean_.size() * 8, [&](index_t begin, index_t end) {
      for (index_t i = begin; i < end; ++i)
        for (index_t g = 0; g < mean_.rows(); ++g)
          add_gradient(i, g, -per_sample_weight * each, &dx(tokens_[i], g * part_));
    });
  }

private:
  /// Codes whose probabilities are held at a time: those that differ in the last numbers of a part.
  static constexpr index_t most_in_range = 256;
  using probabilities = std::array<Scalar, as_size(most_in_range)>;
  static_assert(most_in_range % kernel::simd_width<Scalar> == 0);

  index_t inner() const noexcept { return std::min<index_t>(part_, 8); }  // numbers in which a range's codes differ
  index_t outer() const noexcept { return part_ - inner(); }
  index_t range_size() const noexcept { return index_t(1) << inner(); }
  index_t ranges() const noexcept { return index_t(1) << outer(); }
  /// Whether number d of the part, one of the outer ones, is positive in all codes of the range.
  bool is_positive(index_t range, index_t d) const noexcept { return (range >> (outer() - 1 - d) & 1) != 0; }

  /// logistic(2 s z) and logistic(-2 s z) of the tokens that count: a difference from 1 would lose the small ones.
  template <typename Counts>
  void keep_factors(tokens_in<Scalar> z, Counts&& counts, const executor_ref& executor) {
    positive_.resize(z.rows(), z.cols());
    negative_.resize(z.rows(), z.cols());
    tokens_.reserve(z.rows());
    tokens_.clear();
    for (index_t t = 0; t < z.rows(); ++t)
      if (counts(t)) tokens_.push_back(t);
    const Scalar twice = 2 * sharpness_;
    executor.parallel_each(tokens_.size(), 32 * z.cols(), [&](index_t i) {
      const Scalar* row = z.data() + tokens_[i] * z.outerStride();
      for (const bool up : {true, false})
        kernel::transform(
            z.cols(), [s = up ? twice : -twice](auto v) { return kernel::logistic(decltype(v)(s) * v); },
            up ? positive_.row(i) : negative_.row(i), row);
    });
  }

  /// p of the codes of a range; zeros behind them.
  void fill(index_t i, index_t g, index_t range, probabilities& p) const {
    const Scalar* up = positive_.row(i) + g * part_;
    const Scalar* down = negative_.row(i) + g * part_;
    Scalar shared = 1;
    for (index_t d = 0; d < outer(); ++d) shared *= is_positive(range, d) ? up[d] : down[d];
    p[0] = shared;
    index_t size = 1;
    for (index_t d = part_ - 1; d >= outer(); --d, size *= 2)
      for (index_t c = 0; c < size; ++c) {
        p[as_size(size + c)] = p[as_size(c)] * up[d];
        p[as_size(c)] *= down[d];
      }
  }

  /// Adds p of all tokens up for the codes of a range; returns its part of the sum of H(p).
  double sum_range(index_t g, index_t range) {
    const index_t size = range_size();
    double* sums = mean_.row(g) + range * size;
    std::fill_n(sums, size, 0.0);
    probabilities p{};
    double entropy = 0;
    for (index_t i = 0; i < tokens_.size(); ++i) {
      fill(i, g, range, p);
      kernel::simd<Scalar> terms(Scalar(0));
      for (index_t c = 0; c < size; c += kernel::simd_width<Scalar>) {
        const kernel::simd<Scalar> one = kernel::load(p.data() + c);
        terms -= one * Logarithm::value(one);
      }
      entropy += static_cast<double>(kernel::sum_lanes<Scalar>(terms));
      for (index_t c = 0; c < size; ++c) sums[c] += static_cast<double>(p[as_size(c)]);
    }
    return entropy;
  }

  /// With h[c] = p[c] dL/dp[c]:  dz[d] += s (sum over c of h[c] sign(c)[d]  -  (p(+) - p(-)) sum over c of h[c]).
  void add_gradient(index_t i, index_t g, Scalar weight, Scalar* dz) const {
    const index_t size = range_size();
    std::array<Scalar, as_size(most_bits)> signed_sum{};
    Scalar total = 0;
    probabilities h{};
    for (index_t range = 0; range < ranges(); ++range) {
      fill(i, g, range, h);
      const Scalar* slopes = slopes_.row(g) + range * size;
      kernel::transform(
          size, [&](auto p, auto slope) { return p * (decltype(p)(weight) * Logarithm::slope(p) + slope); }, h.data(),
          h.data(), slopes);
      // Halves of the codes differ in one number's sign: their difference is that number's, their sum goes on.
      index_t half = size;
      for (index_t d = outer(); d < part_; ++d) {
        half /= 2;
        Scalar difference = 0;
        for (index_t c = 0; c < half; ++c) {
          difference += h[as_size(half + c)] - h[as_size(c)];
          h[as_size(c)] += h[as_size(half + c)];
        }
        signed_sum[as_size(d)] += difference;
      }
      total += h[0];
      for (index_t d = 0; d < outer(); ++d) signed_sum[as_size(d)] += is_positive(range, d) ? h[0] : -h[0];
    }
    const Scalar* up = positive_.row(i) + g * part_;
    const Scalar* down = negative_.row(i) + g * part_;
    for (index_t d = 0; d < part_; ++d) dz[d] += sharpness_ * (signed_sum[as_size(d)] - (up[d] - down[d]) * total);
  }

  index_t part_ = 1;
  Scalar sharpness_ = 0;
  buffer<index_t> tokens_;          ///< those that count
  matrix_buffer<Scalar> positive_;  ///< a row for each of them
  matrix_buffer<Scalar> negative_;
  matrix_buffer<double> mean_;
  matrix_buffer<Scalar> slopes_;
  buffer<double> shares_;
};

}  // namespace sluice::inline SLUICE_ISA
