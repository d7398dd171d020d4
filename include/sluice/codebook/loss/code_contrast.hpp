/// Pulls every code to the tokens it fits best and away from those it fits least: the contrastive loss of CVQ-VAE.
///
///   s[c,t]  score of the quantiser's metric, x a constant
///   z_c     mean of the max(1, floor(T/C)) best s[c,:] / temperature
///   loss  = coefficient mean over c of -log( exp(z_c) / (exp(z_c) + w_c) )
///   w_c     sum over the floor(T/2) worst t of exp(s[c,t] / temperature)
///
/// T counts tokens that have a code; without one it is 0. Gradients reach codes only, if they learn by gradients. Equal
/// scores: lower tokens count as worse. [C,T] is never in memory, 64 rows of it are. Give the Metric that the quantiser
/// searches by. Zheng, Vedaldi 2023, "Online Clustered Codebook", the released code.
#pragma once

#include <sluice/codebook/code_scores.hpp>
#include <sluice/codebook/quantized_batch.hpp>
#include <sluice/core/numeric.hpp>

#include <algorithm>
#include <cmath>

namespace sluice::inline SLUICE_ISA {

template <typename Metric = cosine_similarity>
struct code_contrast_loss {
  using role = loss_role;
  static constexpr index_t codes_at_a_time = 64;
  template <typename Scalar>
  struct memory {
    buffer<index_t> tokens;
    matrix_buffer<Scalar> x;  ///< [tokens,D]
    code_scores<Metric, Scalar> scores;
    matrix_buffer<Scalar> rows;       ///< scores of some codes, and then their gradients
    matrix_buffer<index_t> order;     ///< tokens of some codes, worst first as far as that counts
    matrix_buffer<Scalar> gradients;  ///< [C,D]
    buffer<Scalar> losses;            ///< [C]
    matrix_buffer<Scalar> sums;       ///< of some codes [.,D]

    void reserve(index_t count, index_t codes, index_t width) {
      tokens.reserve(count);
      x.reserve(count, width);
      scores.reserve(codes, count, width);
      rows.reserve(codes_at_a_time, count);
      order.reserve(codes_at_a_time, count);
      gradients.reserve(codes, width);
      losses.reserve(codes);
      sums.reserve(codes_at_a_time, width);
    }
  };

  double coefficient = 1;
  double temperature = 0.07;

  /// Throws std::invalid_argument unless coefficient >= 0 and temperature > 0.
  void validate() const {
    if (!is_at_least(coefficient, 0.0) || !is_above(temperature, 0.0))
      throw_invalid("code_contrast_loss needs coefficient >= 0 and temperature > 0, not ", coefficient, " and ",
                    temperature);
  }

  template <typename Scalar>
  Scalar value(const quantized_batch<Scalar>& batch, memory<Scalar>& m, bool) const {
    const index_t codes = batch.code_count(), width = batch.width(), tokens = batch.counted;
    m.losses.assign(codes, Scalar(0));
    m.gradients.set_zero(codes, width);
    if (tokens == 0 || coefficient == 0) return 0;
    list_tokens(batch, m.tokens);
    m.x.resize(tokens, width);
    for (index_t i = 0; i < tokens; ++i) std::copy_n(batch.row(m.tokens[i]), width, m.x.row(i));
    const executor_ref& executor = batch.context.executor;
    m.scores.set(batch.codes, std::as_const(m.x).map(), executor);
    m.rows.resize(codes_at_a_time, tokens);
    m.order.resize(codes_at_a_time, tokens);
    m.sums.resize(codes_at_a_time, width);
    for (index_t first = 0; first < codes; first += codes_at_a_time) {
      const index_t count = (std::min)(codes_at_a_time, codes - first);
      executor.parallel_blocks(count, 1, tokens * (width / 4 + 16), [&](index_t i, index_t) {
        score(m, first + i, i);
        m.losses[first + i] = contrast(m.rows.row(i), m.order.row(i), tokens, codes);
        m.scores.add_gradient(first + i, m.rows.row(i), m.gradients.row(first + i), m.sums.row(i));
      });
    }
    Scalar sum = 0;
    for (const Scalar loss : m.losses) sum += loss;
    return static_cast<Scalar>(coefficient) * sum / static_cast<Scalar>(codes);
  }

  /// Adds to dcodes [C,D], if it has rows.
  template <typename Scalar>
  void backward(const quantized_batch<Scalar>& batch, tokens_out<Scalar>, matrix_map<Scalar> dcodes,
                memory<Scalar>& m) const {
    if (dcodes.rows() == 0) return;
    const auto share = static_cast<Scalar>(coefficient / static_cast<double>(batch.code_count()));
    kernel::add_scaled(share, std::as_const(m.gradients).data(), dcodes.data(), m.gradients.size());
  }

private:
  template <typename Scalar>
  static void score(memory<Scalar>& m, index_t code, index_t row) {
    constexpr index_t stride = code_logits<Scalar>::tile_codes;
    typename code_logits<Scalar>::tile part;
    for (index_t t = 0; t < m.x.rows(); t += stride) {
      const index_t n = (std::min)(stride, m.x.rows() - t);
      m.scores.tiles().fill(code, 1, t, n, part.data());
      std::copy_n(part.data(), n, m.rows.row(row) + t);
    }
  }

  /// The loss of a code; its scores become their gradients.
  template <typename Scalar>
  Scalar contrast(Scalar* s, index_t* order, index_t tokens, index_t codes) const {
    const index_t best = std::max<index_t>(1, tokens / codes), worst = tokens / 2;
    const auto is_worse = [s](index_t a, index_t b) { return s[a] != s[b] ? s[a] < s[b] : a < b; };
    for (index_t t = 0; t < tokens; ++t) order[t] = t;
    const index_t low = (std::min)(worst, tokens - best), high = (std::max)(worst, tokens - best);
    if (high < tokens) std::nth_element(order, order + high, order + tokens, is_worse);
    if (low < high) std::nth_element(order, order + low, order + high, is_worse);
    Scalar z = 0;
    for (index_t i = tokens - best; i < tokens; ++i) z += s[order[i]];
    const auto heat = static_cast<Scalar>(temperature);
    z /= static_cast<Scalar>(best) * heat;
    Scalar top = z;
    for (index_t i = 0; i < worst; ++i) top = (std::max)(top, s[order[i]] / heat);
    const Scalar of_best = std::exp(z - top);
    Scalar sum = of_best;
    for (index_t i = 0; i < worst; ++i) sum += std::exp(s[order[i]] / heat - top);
    // Tokens between the two get 0; where T < 2 a token may be among both.
    for (index_t i = worst; i < tokens; ++i) s[order[i]] = 0;
    for (index_t i = 0; i < worst; ++i) s[order[i]] = std::exp(s[order[i]] / heat - top) / (sum * heat);
    const Scalar pull = (of_best / sum - 1) / (static_cast<Scalar>(best) * heat);
    for (index_t i = tokens - best; i < tokens; ++i) s[order[i]] += pull;
    return std::log(sum) + top - z;
  }
};

}  // namespace sluice::inline SLUICE_ISA
