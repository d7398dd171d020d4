/// Codes by a transport plan between batch and codebook, in which every code gets as much as every other: OptVQ.
///
///   A[t,c] = |x_t - c|, not squared      normalised: all: (A - mean) / (deviation + 1e-6), then minus its minimum, the
///                                        deviation over all of A, unbiased; width: A / sqrt(D); none: A
///   Q = exp(-epsilon A) / (sum + 1e-8);   in every round
///       codes: Q / (sum over t + 1e-8) / C;   then tokens: Q / (sum over c + 1e-8) / T
///   id = a draw from the token's row of Q, or its arg max (the lowest code of equals)
///
/// epsilon multiplies: it is an inverse temperature. Choices depend on the whole batch; inference takes the nearest
/// code and so does not. The plan is a constant in backward. T counts tokens that are not hidden.
///
///   vector_quantizer optvq{mapped_codes<float>{16384, 64, {.bias = true, .learned_basis = true}},
///                          transport_assignment{}, distance_cross_entropy{}};
///
/// Q is kept as its factors exp(-epsilon A), one number a code and one a token: [T,C] is never in memory, and every
/// round computes A twice. What routers do (router/assigned/sinkhorn_coupling.hpp) is the same iteration with other
/// small numbers: there 1e-8 goes to the sums of exp alone, here to those of Q. Draws: u_t for token t.
/// Zhang et al. 2024, "Preventing Local Pitfalls in Vector Quantization via Optimal Transport", section 3.
#pragma once

#include <sluice/codebook/code_logits.hpp>
#include <sluice/codebook/quantized_batch.hpp>
#include <sluice/core/numeric.hpp>

#include <algorithm>
#include <cmath>

namespace sluice::inline SLUICE_ISA {

enum class transport_cost { all, width, none };

struct transport_assignment {
  using role = assignment_role;
  static constexpr bool causal = false;
  static constexpr random_site site{"transport_assignment"};
  template <typename Scalar>
  struct memory {
    buffer<index_t> tokens;      ///< that are not hidden
    matrix_buffer<Scalar> x;     ///< [n,D]
    code_logits<Scalar> logits;  ///< -A
    double slope = 0;            ///< Q = of_code of_token exp(slope (shift - A))
    double shift = 0;
    buffer<double> of_code;   ///< [C]
    buffer<double> of_token;  ///< [n]
    buffer<double> sums;      ///< scratch: of tokens or of codes
    buffer<double> totals;    ///< [n] sums of the rows of the plan, T Q
    buffer<double> best;      ///< [n] the greatest exponent, or what is left of a draw

    void reserve(index_t count, index_t codes, index_t width) {
      tokens.reserve(count);
      x.reserve(count, width);
      logits.reserve(count, codes);
      of_code.reserve(codes);
      for (auto* numbers : {&of_token, &totals, &best}) numbers->reserve(count);
      sums.reserve((std::max)(2 * count, codes));
    }
  };

  double epsilon = 10;
  index_t rounds = 5;
  transport_cost cost = transport_cost::all;
  bool draws = true;

  /// Throws std::invalid_argument unless epsilon > 0 and rounds >= 1.
  void validate() const {
    if (!is_above(epsilon, 0.0) || rounds < 1)
      throw_invalid("transport_assignment needs epsilon > 0 and rounds >= 1, not ", epsilon, " and ", rounds);
  }

  template <typename Scalar>
  void assign(const quantized_batch<Scalar>& batch, tokens_out<index_t> ids, memory<Scalar>& m) const {
    m.tokens.clear();
    m.tokens.reserve(batch.tokens());
    for (index_t t = 0; t < batch.tokens(); ++t) {
      ids(t, 0) = no_code;
      if (!batch.is_hidden(t)) m.tokens.push_back(t);
    }
    m.x.resize(m.tokens.size(), batch.width());
    for (index_t i = 0; i < m.tokens.size(); ++i) std::copy_n(batch.row(m.tokens[i]), batch.width(), m.x.row(i));
    if (m.tokens.empty()) return;
    couple(std::as_const(m.x).map(), batch.codes, m, batch.context.executor);
    choose(batch, ids, m);
  }

  /// The factors of the plan of tokens [n,D] and codes [C,D], n >= 1.
  template <typename Scalar>
  void couple(const_matrix_map<Scalar> x, const_matrix_map<Scalar> codes, memory<Scalar>& m,
              const executor_ref& executor) const {
    m.logits.set_distances(x, codes, executor);
    measure(codes.cols(), m, executor);
    const auto n = static_cast<double>(x.rows()), all = static_cast<double>(codes.rows());
    m.of_token.assign(x.rows(), 1);
    m.of_code.assign(codes.rows(), 1);
    sum_of_tokens(m, executor);
    double total = 0;
    for (const double sum : m.sums) total += sum;
    m.of_code.fill(1 / (total + added));
    for (index_t round = 0; round < rounds; ++round) {
      sum_of_codes(m, executor);
      for (index_t c = 0; c < codes.rows(); ++c) m.of_code[c] /= (m.sums[c] * m.of_code[c] + added) * all;
      sum_of_tokens(m, executor);
      for (index_t t = 0; t < x.rows(); ++t) m.of_token[t] /= (m.sums[t] * m.of_token[t] + added) * n;
    }
    m.totals.resize(x.rows());
    for (index_t t = 0; t < x.rows(); ++t) m.totals[t] = m.sums[t] * m.of_token[t] * n;
  }

  /// T Q [n,C], whose rows have the sum 1, of the last couple.
  template <typename Scalar>
  static void plan(const memory<Scalar>& m, tokens_out<Scalar> out, const executor_ref& executor = {}) {
    const auto n = static_cast<double>(m.logits.tokens());
    m.logits.by_tokens(executor, [&](index_t t, index_t rows, index_t c, index_t codes, const Scalar* logits) {
      for (index_t i = 0; i < rows; ++i)
        for (index_t j = 0; j < codes; ++j)
          out(t + i, c + j) =
              static_cast<Scalar>(n * m.of_token[t + i] * m.of_code[c + j] *
                                  std::exp(m.slope * (static_cast<double>(logits[i * stride<Scalar> + j]) + m.shift)));
    });
  }

private:
  static constexpr double added = 1e-8;
  template <typename Scalar>
  static constexpr index_t stride = code_logits<Scalar>::tile_codes;

  /// How distances become exponents.
  template <typename Scalar>
  void measure(index_t width, memory<Scalar>& m, const executor_ref& executor) const {
    m.slope = cost == transport_cost::width ? epsilon / std::sqrt(static_cast<double>(width)) : epsilon;
    m.shift = 0;
    if (cost != transport_cost::all) return;
    const index_t n = m.logits.tokens();
    m.sums.assign(2 * n, 0);
    m.best.assign(n, -(std::numeric_limits<double>::max)());
    m.logits.by_tokens(executor, [&](index_t t, index_t rows, index_t, index_t codes, const Scalar* logits) {
      for (index_t i = 0; i < rows; ++i)
        for (index_t j = 0; j < codes; ++j) {
          const auto l = static_cast<double>(logits[i * stride<Scalar> + j]);
          m.sums[2 * (t + i)] += l;
          m.sums[2 * (t + i) + 1] += l * l;
          m.best[t + i] = (std::max)(m.best[t + i], l);
        }
    });
    double sum = 0, squares = 0, nearest = m.best[0];
    for (index_t t = 0; t < n; ++t) {
      sum += m.sums[2 * t];
      squares += m.sums[2 * t + 1];
      nearest = (std::max)(nearest, m.best[t]);
    }
    const double count = static_cast<double>(n) * static_cast<double>(m.logits.codes());
    const double variance = (std::max)(0.0, squares - sum * sum / count) / (std::max)(count - 1, 1.0);
    m.slope = epsilon / (std::sqrt(variance) + 1e-6);
    m.shift = -nearest;
  }

  /// sums[t] = sum over c of of_code exp(..)
  template <typename Scalar>
  static void sum_of_tokens(memory<Scalar>& m, const executor_ref& executor) {
    m.sums.assign(m.logits.tokens(), 0);
    m.logits.by_tokens(executor, [&](index_t t, index_t rows, index_t c, index_t codes, const Scalar* logits) {
      std::array<Scalar, as_size(stride<Scalar>)> e;
      for (index_t i = 0; i < rows; ++i) {
        exponentials(m, logits + i * stride<Scalar>, e.data(), codes);
        double sum = 0;
        for (index_t j = 0; j < codes; ++j) sum += m.of_code[c + j] * static_cast<double>(e[as_size(j)]);
        m.sums[t + i] += sum;
      }
    });
  }
  /// sums[c] = sum over t of of_token exp(..)
  template <typename Scalar>
  static void sum_of_codes(memory<Scalar>& m, const executor_ref& executor) {
    m.sums.assign(m.logits.codes(), 0);
    m.logits.by_codes(executor, [&](index_t t, index_t rows, index_t c, index_t codes, const Scalar* logits) {
      std::array<Scalar, as_size(stride<Scalar>)> e;
      for (index_t i = 0; i < rows; ++i) {
        exponentials(m, logits + i * stride<Scalar>, e.data(), codes);
        for (index_t j = 0; j < codes; ++j) m.sums[c + j] += m.of_token[t + i] * static_cast<double>(e[as_size(j)]);
      }
    });
  }

  template <typename Scalar>
  static void exponentials(const memory<Scalar>& m, const Scalar* logits, Scalar* out, index_t count) {
    const auto slope = static_cast<Scalar>(m.slope), shift = static_cast<Scalar>(m.shift);
    const auto exponential = [slope, shift](const auto& l) {
      using std::exp;
      using number = std::remove_cvref_t<decltype(l)>;
      return exp(number(slope) * (l + number(shift)));
    };
    kernel::transform(count, exponential, out, logits);
  }

  template <typename Scalar>
  void choose(const quantized_batch<Scalar>& batch, tokens_out<index_t> ids, memory<Scalar>& m) const {
    const auto n = static_cast<double>(m.logits.tokens());
    m.best.assign(m.logits.tokens(), 0);
    for (index_t i = 0; draws && i < m.logits.tokens(); ++i)
      m.best[i] = batch.context.random.uniform(site, m.tokens[i]) * m.totals[i];
    m.sums.resize(m.logits.codes());
    for (index_t c = 0; c < m.logits.codes(); ++c) m.sums[c] = std::log(m.of_code[c]);
    m.logits.by_tokens(
        batch.context.executor, [&](index_t t, index_t rows, index_t c, index_t codes, const Scalar* logits) {
          for (index_t i = 0; i < rows; ++i) {
            index_t& id = ids(m.tokens[t + i], 0);
            double& best = m.best[t + i];
            for (index_t j = 0; j < codes; ++j) {
              const double exponent = m.slope * (static_cast<double>(logits[i * stride<Scalar> + j]) + m.shift);
              if (!draws) {  // in logarithms, in which nothing vanishes
                if (id == no_code || exponent + m.sums[c + j] > best) id = c + j, best = exponent + m.sums[c + j];
              } else if (best > 0 || id == no_code) {
                const double part = n * m.of_token[t + i] * m.of_code[c + j] * std::exp(exponent);
                best -= part;
                if (part > 0 || id == no_code) id = c + j;  // the last takes what rounding leaves
              }
            }
          }
        });
  }
};

}  // namespace sluice::inline SLUICE_ISA
