/// Index propagation: the gradient passes the choice by the softmax over all codes, so every code learns at every step.
///
///   y = (o + p - sg[p]) C      o = one-hot of the choice, p = softmax over c of x . c:     y is the code itself
///   dl[t,c] = p[t,c] (dy_t . c - sum over k of p[t,k] dy_t . k)
///   dx_t = sum over c of dl[t,c] c       dc = sum over its tokens of dy_t + sum over all tokens of dl[t,c] x_t
///
/// The published quantiser (IBQ) chooses by inner_product and has all three terms of commitment_loss:
///
///   vector_quantizer ibq{learned_codes<float>{262144, 256}, inner_product{}, index_propagation{},
///                        commitment_loss{.encoder = 1, .codebook = 0.25, .surrogate = 1}};
///
/// (its encoder term is mean (sg[q] - x)^2 with weight 1, beta is on the codebook's). Where one code has all of p, dl
/// is zero and only the losses move x. With by_distance = true p is the softmax of -|x - c|^2, and dl goes on to x and
/// c through that: what Distill-VQ does (codebook/search/score_distillation.hpp). Work: 16 C D operations a token in
/// backward; [T,C] is never in memory. Shi et al. 2024, "Taming Scalable Visual Tokenizer for Autoregressive Image
/// Generation", section 3.2.
#pragma once

#include <sluice/codebook/code_logits.hpp>
#include <sluice/codebook/code_sums.hpp>
#include <sluice/codebook/quantized_batch.hpp>

namespace sluice::inline SLUICE_ISA {

struct index_propagation {
  using role = gradient_role;

  bool by_distance = false;

  template <typename Scalar>
  struct memory {
    code_logits<Scalar> logits;
    typename code_logits<Scalar>::log_sums log_sums;
    buffer<Scalar> means;  ///< [T] sum over c of p[t,c] dy_t . c
    code_sums<Scalar> chosen;

    void reserve(index_t tokens, index_t codes, index_t width) {
      log_sums.reserve(tokens);
      means.reserve(tokens);
      chosen.reserve(tokens, codes, width);
    }
  };

  /// Adds to dx [T,D] and, if it has rows, to dcodes [C,D].
  template <typename Scalar>
  void backward(const quantized_batch<Scalar>& batch, tokens_in<Scalar> dy, tokens_out<Scalar> dx,
                matrix_map<Scalar> dcodes, memory<Scalar>& m) const {
    constexpr index_t stride = code_logits<Scalar>::tile_codes;
    const index_t width = batch.width();
    const executor_ref& executor = batch.context.executor;
    // dy . c for a tile.
    const auto along = [&](index_t t, index_t tokens, index_t c, index_t codes, const Scalar*, Scalar* out) {
      kernel::multiply_nt(tokens, codes, width, dy.data() + t * dy.outerStride(), dy.outerStride(), batch.code(c),
                          width, out, stride);
    };
    if (by_distance)
      m.logits.set_squares(batch.x, batch.codes, 1, executor);
    else
      m.logits.set_products(batch.x, batch.codes);
    m.logits.sum(m.log_sums, m.means, executor, along);
    m.logits.backward(
        [&](index_t t, index_t tokens, index_t c, index_t codes, const Scalar* logits, Scalar* d) {
          along(t, tokens, c, codes, logits, d);
          typename code_logits<Scalar>::tile p;
          for (index_t i = 0; i < tokens; ++i) {
            Scalar* row = d + i * stride;
            const Scalar mean = m.means[t + i];
            m.log_sums.shares(t + i, logits + i * stride, p.data(), codes);
            for (index_t j = 0; j < codes; ++j)
              row[j] = batch.has_code(t + i) ? p[as_size(j)] * (row[j] - mean) : Scalar(0);
          }
        },
        dx, dcodes, executor);
    if (dcodes.rows() == 0) return;
    sum_by_code(dy, batch.ids, batch.code_count(), m.chosen, executor);
    for (index_t c = 0; c < batch.code_count(); ++c)
      kernel::add_scaled(Scalar(1), m.chosen.sums.row(c), dcodes.data() + c * width, width);
  }
};

}  // namespace sluice::inline SLUICE_ISA
