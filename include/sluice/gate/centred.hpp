/// Centred gate: each token's logits get mean 0 and deviation 1 over the experts, a layer norm with nothing learned.
///
///   logits = (G - mean G) s,  s = 1 / sqrt(variance G + epsilon)      G = gate(x), population variance over E
///   dG = s (g - mean g - logits mean(g logits))
///
/// Only how far apart experts are counts, not how loud the gate is: it keeps sparse weights such as entmax's from
/// becoming one-hot. A row of equal logits becomes zeros. standardized_gate keeps the mean and has the unbiased
/// deviation. An infinite logit makes its row NaN. NaN stays in its row. T = 0 is fine. Oldfield et al. 2024 (muMoE),
/// arXiv:2402.12550.
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/gate/decorator.hpp>
#include <sluice/gate/linear.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

template <typename Inner>
class centred_gate : public gate_decorator<Inner> {
public:
  using scalar = typename Inner::scalar;
  struct tape : decorated_tape<Inner> {
    matrix_buffer<scalar> logits;   ///< [T,E] that were handed out
    buffer<scalar> scale;           ///< [T]
    matrix_buffer<scalar> dlogits;  ///< of the inner gate
  };

  /// Throws std::invalid_argument unless epsilon > 0.
  explicit centred_gate(Inner inner, double epsilon = 1e-5)
      : gate_decorator<Inner>(std::move(inner)), epsilon_(static_cast<scalar>(epsilon)) {
    if (!is_above(epsilon, 0)) throw_invalid("centred_gate needs epsilon > 0, not ", epsilon);
  }
  centred_gate(index_t inputs, index_t experts) requires std::constructible_from<Inner, index_t, index_t>
      : centred_gate(Inner(inputs, experts)) {}

  void forward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_out<scalar> logits, tape& t) const {
    this->inner().forward(x, context, logits, t.inner);
    t.logits.resize(x.rows(), this->experts());
    t.scale.resize(x.rows());
    const auto count = static_cast<scalar>(this->experts());
    context.executor.parallel_each(x.rows(), 4 * this->experts(), [&](index_t r) {
      scalar mean = 0, squares = 0;
      for (index_t e = 0; e < this->experts(); ++e) mean += logits(r, e);
      mean /= count;
      for (index_t e = 0; e < this->experts(); ++e) squares += (logits(r, e) - mean) * (logits(r, e) - mean);
      t.scale[r] = 1 / std::sqrt(squares / count + epsilon_);
      for (index_t e = 0; e < this->experts(); ++e) t.logits(r, e) = logits(r, e) = (logits(r, e) - mean) * t.scale[r];
    });
  }

  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_in<scalar> dlogits, tape& t,
                tokens_out<scalar> dx) {
    t.dlogits.resize(x.rows(), this->experts());
    const auto count = static_cast<scalar>(this->experts());
    context.executor.parallel_each(x.rows(), 4 * this->experts(), [&](index_t r) {
      scalar mean = 0, inner = 0;
      for (index_t e = 0; e < this->experts(); ++e) {
        mean += dlogits(r, e);
        inner += dlogits(r, e) * t.logits(r, e);
      }
      mean /= count, inner /= count;
      for (index_t e = 0; e < this->experts(); ++e)
        t.dlogits(r, e) = t.scale[r] * (dlogits(r, e) - mean - t.logits(r, e) * inner);
    });
    this->inner().backward(x, context, t.dlogits.map(), t.inner, dx);
  }

private:
  scalar epsilon_;
};

static_assert(DifferentiableGate<centred_gate<linear_gate<float>>>);

}  // namespace sluice::inline SLUICE_ISA
