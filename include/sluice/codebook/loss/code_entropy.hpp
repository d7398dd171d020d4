/// Pushes every token to be sure of its code, and all tokens together to use all codes: the entropy penalty of IBQ.
///
///   p[t,c] = softmax over c of x_t . c / temperature      a_c = mean over tokens of p[t,c]
///   loss   = sample mean over tokens of H(p_t)  -  batch H(a)
///   H(p_t) = -sum p log p       H(a) = -sum a log(a + 1e-5)
///   dl[t,c] = p[t,c] / T ( -sample (log p[t,c] + H(p_t))  +  batch (b_c - sum over k of p[t,k] b_k) )
///   b_c     = log(a_c + 1e-5) + a_c / (a_c + 1e-5)
///
/// T counts tokens that have a code. Gradients reach x and, where codes learn by gradients, all codes. [T,C] is never
/// in memory. Published temperature: 0.01.
/// Shi et al. 2024, "Taming Scalable Visual Tokenizer for Autoregressive Image Generation"; Yu et al. 2023, MAGVIT-v2.
#pragma once

#include <sluice/codebook/code_logits.hpp>
#include <sluice/codebook/quantized_batch.hpp>
#include <sluice/core/numeric.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

struct code_entropy_loss {
  using role = loss_role;
  static constexpr bool causal = false;
  template <typename Scalar>
  struct memory {
    code_logits<Scalar> logits;
    typename code_logits<Scalar>::log_sums log_sums;
    buffer<Scalar> entropies;  ///< [T] H(p_t)
    buffer<Scalar> shares;     ///< [C] a
    buffer<Scalar> slopes;     ///< [C] b
    buffer<Scalar> means;      ///< [T] sum over c of p b
    Scalar sample_entropy = 0;
    Scalar batch_entropy = 0;

    void reserve(index_t tokens, index_t codes, index_t) {
      log_sums.reserve(tokens);
      for (auto* numbers : {&entropies, &means}) numbers->reserve(tokens);
      for (auto* numbers : {&shares, &slopes}) numbers->reserve(codes);
    }
  };

  double sample = 1;
  double batch_weight = 1;
  double temperature = 0.01;
  double coefficient = 1;

  /// Throws std::invalid_argument unless weights are at least 0 and temperature > 0.
  void validate() const {
    if (!is_at_least(sample, 0.0) || !is_at_least(batch_weight, 0.0) || !is_at_least(coefficient, 0.0) ||
        !is_above(temperature, 0.0))
      throw_invalid("code_entropy_loss needs weights >= 0 and temperature > 0, not ", sample, ", ", batch_weight, ", ",
                    coefficient, " and ", temperature);
  }

  template <typename Scalar>
  Scalar value(const quantized_batch<Scalar>& batch, memory<Scalar>& m, bool) const {
    m.sample_entropy = m.batch_entropy = 0;
    if (batch.counted == 0) return 0;
    const executor_ref& executor = batch.context.executor;
    const auto tokens = static_cast<Scalar>(batch.counted);
    m.logits.set_products(batch.x, batch.codes, 1 / temperature);
    m.logits.entropies(m.log_sums, m.entropies, executor);
    for (index_t t = 0; t < batch.tokens(); ++t)
      if (batch.has_code(t)) m.sample_entropy += m.entropies[t] / tokens;
    m.shares.assign(batch.code_count(), Scalar(0));
    m.logits.by_codes(executor, [&](index_t t, index_t rows, index_t c, index_t codes, const Scalar* logits) {
      typename code_logits<Scalar>::tile p;
      for (index_t i = 0; i < rows; ++i) {
        if (!batch.has_code(t + i)) continue;
        m.log_sums.shares(t + i, logits + i * stride<Scalar>, p.data(), codes);
        kernel::add_scaled(1 / tokens, p.data(), m.shares.data() + c, codes);
      }
    });
    m.slopes.resize(batch.code_count());
    for (index_t c = 0; c < batch.code_count(); ++c) {
      const Scalar a = m.shares[c], log_a = std::log(a + added<Scalar>);
      m.batch_entropy -= a * log_a;
      m.slopes[c] = log_a + a / (a + added<Scalar>);
    }
    return static_cast<Scalar>(coefficient) *
           (static_cast<Scalar>(sample) * m.sample_entropy - static_cast<Scalar>(batch_weight) * m.batch_entropy);
  }

  /// Adds to dx [T,D] and, if it has rows, to dcodes [C,D].
  template <typename Scalar>
  void backward(const quantized_batch<Scalar>& batch, tokens_out<Scalar> dx, matrix_map<Scalar> dcodes,
                memory<Scalar>& m) const {
    if (batch.counted == 0) return;
    const executor_ref& executor = batch.context.executor;
    const auto of_sample = static_cast<Scalar>(coefficient * sample / static_cast<double>(batch.counted));
    const auto of_batch = static_cast<Scalar>(coefficient * batch_weight / static_cast<double>(batch.counted));
    m.logits.set_products(batch.x, batch.codes, 1 / temperature);
    m.logits.sum(m.log_sums, m.means, executor,
                 [&](index_t, index_t rows, index_t c, index_t codes, const Scalar*, Scalar* out) {
                   for (index_t i = 0; i < rows; ++i) std::copy_n(m.slopes.data() + c, codes, out + i * stride<Scalar>);
                 });
    m.logits.backward(
        [&](index_t t, index_t rows, index_t c, index_t codes, const Scalar* logits, Scalar* d) {
          for (index_t i = 0; i < rows; ++i) {
            const Scalar* l = logits + i * stride<Scalar>;
            Scalar* row = d + i * stride<Scalar>;
            const Scalar entropy = m.entropies[t + i], mean = m.means[t + i];
            m.log_sums.shares(t + i, l, row, codes);
            for (index_t j = 0; j < codes; ++j)
              row[j] = batch.has_code(t + i) ? row[j] * (of_batch * (m.slopes[c + j] - mean) -
                                                         of_sample * (m.log_sums.below(l[j], t + i) + entropy))
                                             : Scalar(0);
          }
        },
        dx, dcodes, executor);
  }

private:
  template <typename Scalar>
  static constexpr index_t stride = code_logits<Scalar>::tile_codes;
  template <typename Scalar>
  static constexpr Scalar added = Scalar(1e-5);
};

}  // namespace sluice::inline SLUICE_ISA
