/// Teaches distances to agree with the choice: the loss of OptVQ, whose choice is not the nearest code.
///
///   loss = coefficient mean over tokens of ( log sum over c of exp(-|x - c|) + |x - q| )
///   dl[t,c] = coefficient (softmax over c of -|x_t - c| - [c is q]) / T,  l = -|x - c|
///
/// T counts tokens that have a code. Gradients reach x and, where codes learn by gradients, all codes; a token that
/// lies on a code has no gradient by it. [T,C] is never in memory.
/// Zhang et al. 2024, "Preventing Local Pitfalls in Vector Quantization via Optimal Transport", the released code.
#pragma once

#include <sluice/codebook/code_logits.hpp>
#include <sluice/codebook/quantized_batch.hpp>
#include <sluice/core/numeric.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

struct distance_cross_entropy {
  using role = loss_role;
  template <typename Scalar>
  struct memory {
    code_logits<Scalar> logits;
    typename code_logits<Scalar>::log_sums log_sums;
    buffer<Scalar> means;

    void reserve(index_t tokens, index_t codes, index_t) {
      logits.reserve(tokens, codes);
      log_sums.reserve(tokens);
      means.reserve(tokens);
    }
  };

  double coefficient = 1;

  /// Throws std::invalid_argument unless coefficient >= 0.
  void validate() const {
    if (!is_at_least(coefficient, 0.0))
      throw_invalid("distance_cross_entropy needs coefficient >= 0, not ", coefficient);
  }

  template <typename Scalar>
  Scalar value(const quantized_batch<Scalar>& batch, memory<Scalar>& m, bool) const {
    if (batch.counted == 0) return 0;
    m.logits.set_distances(batch.x, batch.codes, batch.context.executor);
    m.logits.sum(m.log_sums, m.means, batch.context.executor,
                 [](index_t, index_t, index_t, index_t, const Scalar*, Scalar* out) {
                   std::fill_n(out, code_logits<Scalar>::tile_tokens * code_logits<Scalar>::tile_codes, Scalar(0));
                 });
    Scalar sum = 0;
    for (index_t t = 0; t < batch.tokens(); ++t) {
      if (!batch.has_code(t)) continue;
      Scalar logit;
      m.logits.fill(t, 1, batch.ids[t], 1, &logit);
      sum -= m.log_sums.below(logit, t);
    }
    return weight<Scalar>(batch) * sum;
  }

  /// Adds to dx [T,D] and, if it has rows, to dcodes [C,D].
  template <typename Scalar>
  void backward(const quantized_batch<Scalar>& batch, tokens_out<Scalar> dx, matrix_map<Scalar> dcodes,
                memory<Scalar>& m) const {
    if (batch.counted == 0) return;
    constexpr index_t stride = code_logits<Scalar>::tile_codes;
    const Scalar factor = weight<Scalar>(batch);
    m.logits.set_distances(batch.x, batch.codes, batch.context.executor);
    m.logits.backward(
        [&](index_t t, index_t rows, index_t c, index_t codes, const Scalar* logits, Scalar* d) {
          for (index_t i = 0; i < rows; ++i) {
            Scalar* row = d + i * stride;
            if (!batch.has_code(t + i)) {
              std::fill_n(row, codes, Scalar(0));
              continue;
            }
            m.log_sums.shares(t + i, logits + i * stride, row, codes);
            for (index_t j = 0; j < codes; ++j) row[j] *= factor;
            if (const index_t id = batch.ids[t + i]; id >= c && id < c + codes) row[id - c] -= factor;
          }
        },
        dx, dcodes, batch.context.executor);
  }

private:
  template <typename Scalar>
  Scalar weight(const quantized_batch<Scalar>& batch) const {
    return static_cast<Scalar>(coefficient / static_cast<double>(batch.counted));
  }
};

}  // namespace sluice::inline SLUICE_ISA
