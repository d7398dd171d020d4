/// Logits of every token with every code, a tile at a time: what losses and gradients see that reach all codes.
///
///   products    l[t,c] = scale x_t . c
///   squares     l[t,c] = -scale |x_t - c|^2
///   distances   l[t,c] = -|x_t - c|
///
/// [T,C] is never in memory: tiles are computed when they are looked at, and again in backward, which has
///   dx += sum over c of dl[t,c] dl/dx      dcodes += sum over t of dl[t,c] dl/dc       (distances: 0 where they are)
/// Tokens, and codes, are cut into blocks; each sum runs in one order, so bits depend neither on blocks nor on threads.
/// Squares are taken from products and norms, and clamped at 0.
#pragma once

#include <sluice/codebook/code_log_sums.hpp>
#include <sluice/core/buffer.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/kernel/gemm.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <array>
#include <cmath>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class code_logits {
public:
  static constexpr index_t tile_tokens = 16;
  static constexpr index_t tile_codes = 128;
  using tile = std::array<Scalar, as_size(tile_tokens* tile_codes)>;  ///< rows tile_codes apart

  using log_sums = code_log_sums<Scalar>;

  /// x [T,D] and codes [C,D] must stay as they are while the logits are looked at.
  void set_products(const_matrix_map<Scalar> x, const_matrix_map<Scalar> codes, double scale = 1) {
    see(form::products, x, codes, scale);
  }
  void set_squares(const_matrix_map<Scalar> x, const_matrix_map<Scalar> codes, double scale,
                   const executor_ref& executor) {
    see(form::squares, x, codes, scale);
    take_norms(x, codes, executor);
  }
  void set_distances(const_matrix_map<Scalar> x, const_matrix_map<Scalar> codes, const executor_ref& executor) {
    see(form::distances, x, codes, 1);
    take_norms(x, codes, executor);
  }

  void reserve(index_t tokens, index_t codes) {
    token_squares_.reserve(tokens);
    code_squares_.reserve(codes);
  }

  index_t tokens() const noexcept { return tokens_; }
  index_t codes() const noexcept { return codes_; }

  /// Logits of m tokens from t on with n codes from c on.
  void fill(index_t t, index_t m, index_t c, index_t n, Scalar* out) const {
    kernel::multiply_nt(m, n, width_, x_ + t * width_, width_, code_ + c * width_, width_, out, tile_codes);
    for (index_t i = 0; i < m; ++i) {
      Scalar* row = out + i * tile_codes;
      if (form_ != form::products)
        for (index_t j = 0; j < n; ++j)
          row[j] = (std::max)(token_squares_[t + i] + code_squares_[c + j] - 2 * row[j], Scalar(0));
      if (form_ == form::distances)
        for (index_t j = 0; j < n; ++j) row[j] = -std::sqrt(row[j]);
      else if (factor() != 1)
        for (index_t j = 0; j < n; ++j) row[j] *= factor();
    }
  }

  /// part(t, m, c, n, logits) for all codes in order, in a task for each block of tokens.
  template <typename Part>
  void by_tokens(const executor_ref& executor, Part&& part) const {
    executor.parallel_blocks(tokens_, tile_tokens, codes_ * (width_ / 4 + 16), [&](index_t first, index_t last) {
      tile logits;
      for (index_t c = 0; c < codes_; c += tile_codes) {
        const index_t n = (std::min)(tile_codes, codes_ - c);
        fill(first, last - first, c, n, logits.data());
        part(first, last - first, c, n, logits.data());
      }
    });
  }

  /// part(t, m, c, n, logits) for all tokens in order, in a task for each block of codes.
  template <typename Part>
  void by_codes(const executor_ref& executor, Part&& part) const {
    executor.parallel_blocks(codes_, tile_codes, tokens_ * (width_ / 4 + 16), [&](index_t first, index_t last) {
      tile logits;
      for (index_t t = 0; t < tokens_; t += tile_tokens) {
        const index_t m = (std::min)(tile_tokens, tokens_ - t);
        fill(t, m, first, last - first, logits.data());
        part(t, m, first, last - first, logits.data());
      }
    });
  }

  /// The log sums, and means[t] = sum over c of softmax(l[t])[c] v[t,c], where
  /// value(t, m, c, n, logits, out) writes the v of a tile.
  template <typename Value>
  void sum(log_sums& out, buffer<Scalar>& means, const executor_ref& executor, Value&& value) const {
    out.resize(tokens_);
    means.resize(tokens_);
    executor.parallel_blocks(tokens_, tile_tokens, codes_ * (width_ / 4 + 16), [&](index_t first, index_t last) {
      tile logits, values;
      std::array<detail::running_log_sum<Scalar, tile_codes>, as_size(tile_tokens)> sums{};
      for (index_t c = 0; c < codes_; c += tile_codes) {
        const index_t n = (std::min)(tile_codes, codes_ - c), m = last - first;
        fill(first, m, c, n, logits.data());
        value(first, m, c, n, static_cast<const Scalar*>(logits.data()), values.data());
        for (index_t i = 0; i < m; ++i)
          sums[as_size(i)].add(logits.data() + i * tile_codes, n, values.data() + i * tile_codes);
      }
      for (index_t t = first; t < last; ++t) {
        sums[as_size(t - first)].put(out, t);
        means[t] = sums[as_size(t - first)].mean();
      }
    });
  }

  /// The same log sums, and the entropy of every token's softmax, from differences to the maximum: large logits cancel.
  void entropies(log_sums& out, buffer<Scalar>& entropy, const executor_ref& executor) const {
    out.resize(tokens_);
    entropy.resize(tokens_);
    executor.parallel_blocks(tokens_, tile_tokens, codes_ * (width_ / 4 + 16), [&](index_t first, index_t last) {
      tile logits;
      std::array<detail::running_log_sum<Scalar, tile_codes>, as_size(tile_tokens)> sums{};
      for (index_t c = 0; c < codes_; c += tile_codes) {
        const index_t n = (std::min)(tile_codes, codes_ - c);
        fill(first, last - first, c, n, logits.data());
        for (index_t i = 0; i < last - first; ++i) sums[as_size(i)].add_below(logits.data() + i * tile_codes, n);
      }
      for (index_t t = first; t < last; ++t) {
        sums[as_size(t - first)].put(out, t);
        entropy[t] = out.logs[t] - sums[as_size(t - first)].mean();
      }
    });
  }

  /// dl(t, m, c, n, logits, out) writes the gradients of a tile of logits, zeros where a token is hidden. Adds to dx
  /// [T,D] and, if it has rows, to dcodes [C,D].
  template <typename Gradient>
  void backward(Gradient&& dl, tokens_out<Scalar> dx, matrix_map<Scalar> dcodes, const executor_ref& executor) const {
    by_tokens(executor, [&](index_t t, index_t m, index_t c, index_t n, const Scalar* logits) {
      tile d;
      dl(t, m, c, n, logits, d.data());
      of_products(m, n, logits, d.data());
      kernel::multiply_nn(m, width_, n, d.data(), tile_codes, code_ + c * width_, width_,
                          dx.data() + t * dx.outerStride(), dx.outerStride(), kernel::write::accumulate);
      for (index_t i = 0; form_ != form::products && i < m; ++i) {
        Scalar sum = 0;
        for (index_t j = 0; j < n; ++j) sum += d[as_size(i * tile_codes + j)];
        kernel::add_scaled(-sum, x_ + (t + i) * width_, dx.data() + (t + i) * dx.outerStride(), width_);
      }
    });
    if (dcodes.rows() == 0) return;
    by_codes(executor, [&](index_t t, index_t m, index_t c, index_t n, const Scalar* logits) {
      tile d;
      dl(t, m, c, n, logits, d.data());
      of_products(m, n, logits, d.data());
      kernel::multiply_tn(n, width_, m, d.data(), tile_codes, x_ + t * width_, width_, dcodes.data() + c * width_,
                          width_, kernel::write::accumulate);
      for (index_t j = 0; form_ != form::products && j < n; ++j) {
        Scalar sum = 0;
        for (index_t i = 0; i < m; ++i) sum += d[as_size(i * tile_codes + j)];
        kernel::add_scaled(-sum, code_ + (c + j) * width_, dcodes.data() + (c + j) * width_, width_);
      }
    });
  }

private:
  enum class form { products, squares, distances };

  void see(form f, const_matrix_map<Scalar> x, const_matrix_map<Scalar> codes, double scale) noexcept {
    form_ = f;
    scale_ = static_cast<Scalar>(scale);
    x_ = x.data(), code_ = codes.data();
    tokens_ = x.rows(), codes_ = codes.rows(), width_ = codes.cols();
  }

  /// Of products or of squares.
  Scalar factor() const noexcept { return form_ == form::squares ? -scale_ : scale_; }

  void take_norms(const_matrix_map<Scalar> x, const_matrix_map<Scalar> codes, const executor_ref& executor) {
    square(x, token_squares_, executor);
    square(codes, code_squares_, executor);
  }

  static void square(const_matrix_map<Scalar> rows, buffer<Scalar>& out, const executor_ref& executor) {
    out.resize(rows.rows());
    executor.parallel_each(rows.rows(), rows.cols() / 4, [&](index_t r) {
      out[r] = kernel::dot(rows.data() + r * rows.cols(), rows.data() + r * rows.cols(), rows.cols());
    });
  }

  /// From the gradients of logits to those of the products x . c that they are made of.
  void of_products(index_t m, index_t n, const Scalar* logits, Scalar* d) const {
    const Scalar slope = form_ == form::squares ? 2 * scale_ : scale_;
    for (index_t i = 0; i < m; ++i)
      for (index_t j = i * tile_codes; j < i * tile_codes + n; ++j)
        d[j] = form_ != form::distances ? d[j] * slope : logits[j] == 0 ? Scalar(0) : d[j] / -logits[j];
  }

  const Scalar* x_ = nullptr;
  const Scalar* code_ = nullptr;
  index_t tokens_ = 0;
  index_t codes_ = 0;
  index_t width_ = 0;
  Scalar scale_ = 1;
  form form_ = form::products;
  buffer<Scalar> token_squares_;
  buffer<Scalar> code_squares_;
};

}  // namespace sluice::inline SLUICE_ISA
