/// What ties tokens and codes together: the losses of VQ-VAE, as means over all T D numbers of tokens that have a code.
///
///   encoder   |x - sg[q]|^2     pulls x to its code:   dx += 2 encoder (x - q) / (T D)
///   codebook  |sg[x] - q|^2     pulls the code to x:   dq += 2 codebook (q - x) / (T D)
///   surrogate |x - y|^2         by the way that dy goes: dy += 2 surrogate (y - x) / (T D), dx the opposite
///
/// The third is for gradients that reach more than the chosen code (codebook/gradient/index_propagation.hpp); with
/// straight_through it has none.
/// Published weights: 0.25 and 1. Several programs and their checkpoints have them the other way round ("legacy"), so
/// both are here. Codes that do not learn by gradients have no codebook term. Tokens are added up in order, a code's
/// gradient too.
/// van den Oord, Vinyals, Kavukcuoglu 2017, "Neural Discrete Representation Learning", equation 3.
#pragma once

#include <sluice/codebook/code_sums.hpp>
#include <sluice/codebook/quantized_batch.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/kernel/vector_math.hpp>

namespace sluice::inline SLUICE_ISA {

struct commitment_loss {
  using role = loss_role;
  template <typename Scalar>
  struct memory {
    code_sums<Scalar> sums;
    buffer<Scalar> errors;  ///< |x - q|^2 of a token
  };

  double encoder = 0.25;
  double codebook = 1;
  double surrogate = 0;
  /// Means over all T tokens of the call, as DAC has them where dropout hides some of a stage.
  bool over_hidden = false;

  /// Throws std::invalid_argument unless all weights are at least 0.
  void validate() const {
    if (!is_at_least(encoder, 0.0) || !is_at_least(codebook, 0.0) || !is_at_least(surrogate, 0.0))
      throw_invalid("commitment_loss needs weights >= 0, not ", encoder, ", ", codebook, " and ", surrogate);
  }

  template <typename Scalar>
  Scalar value(const quantized_batch<Scalar>& batch, memory<Scalar>& m, bool codes_learn) const {
    m.errors.resize(batch.tokens());
    batch.context.executor.parallel_each(batch.tokens(), batch.width(),
                                         [&](index_t t) { m.errors[t] = squared_error(batch, t); });
    Scalar sum = 0;
    for (const Scalar error : m.errors) sum += error;
    return (weight<Scalar>(encoder + surrogate, batch) + (codes_learn ? weight<Scalar>(codebook, batch) : Scalar(0))) *
           sum;
  }

  /// What the loss asks of y, before the gradient goes through the choice. Adds to dy and dx [T,D].
  template <typename Scalar>
  void backward_output(const quantized_batch<Scalar>& batch, matrix_map<Scalar> dy, tokens_out<Scalar> dx) const {
    if (surrogate == 0) return;
    const Scalar factor = 2 * weight<Scalar>(surrogate, batch);
    batch.context.executor.parallel_each(batch.tokens(), 2 * batch.width(), [&](index_t t) {
      if (!batch.has_code(t)) return;
      const Scalar *x = batch.row(t), *q = batch.code_of(t);
      Scalar *to_output = dy.data() + t * dy.cols(), *to_token = dx.data() + t * dx.outerStride();
      for (index_t i = 0; i < batch.width(); ++i) {
        const Scalar d = factor * (q[i] - x[i]);
        to_output[i] += d;
        to_token[i] -= d;
      }
    });
  }

  /// Adds to dx [T,D] and, if it has rows, to dcodes [C,D].
  template <typename Scalar>
  void backward(const quantized_batch<Scalar>& batch, tokens_out<Scalar> dx, matrix_map<Scalar> dcodes,
                memory<Scalar>& m) const {
    const Scalar to_code = 2 * weight<Scalar>(encoder, batch), to_token = 2 * weight<Scalar>(codebook, batch);
    batch.context.executor.parallel_each(batch.tokens(), 2 * batch.width(), [&](index_t t) {
      if (!batch.has_code(t)) return;
      const Scalar *x = batch.row(t), *q = batch.code_of(t);
      Scalar* d = dx.data() + t * dx.outerStride();
      for (index_t i = 0; i < batch.width(); ++i) d[i] += to_code * (x[i] - q[i]);
    });
    if (dcodes.rows() == 0 || codebook == 0) return;
    sum_by_code(batch.x, batch.ids, batch.code_count(), m.sums, batch.context.executor);
    batch.context.executor.parallel_each(batch.code_count(), 2 * batch.width(), [&](index_t c) {
      const auto count = static_cast<Scalar>(m.sums.counts[c]);
      const Scalar *code = batch.codes.data() + c * batch.width(), *sum = m.sums.sums.row(c);
      Scalar* d = dcodes.data() + c * batch.width();
      for (index_t i = 0; i < batch.width(); ++i) d[i] += to_token * (count * code[i] - sum[i]);
    });
  }

private:
  template <typename Scalar>
  Scalar weight(double of, const quantized_batch<Scalar>& batch) const {
    const index_t tokens = over_hidden ? batch.tokens() : batch.counted;
    return batch.counted == 0 ? Scalar(0) : static_cast<Scalar>(of / static_cast<double>(tokens * batch.width()));
  }

  template <typename Scalar>
  static Scalar squared_error(const quantized_batch<Scalar>& batch, index_t t) {
    return batch.has_code(t) ? kernel::squared_difference(batch.row(t), batch.code_of(t), batch.width()) : Scalar(0);
  }
};

}  // namespace sluice::inline SLUICE_ISA
