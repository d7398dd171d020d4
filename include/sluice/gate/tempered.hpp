/// Tempered gate: an inner gate whose logits are divided by a temperature that is learned.
///
///   logits = G / tau,  tau = exp(theta)
///   dG = dlogits / tau;   dtheta = - sum over tokens and experts of dlogits logits
///
/// Parameter: temperature theta [1], initially log tau, so that tau stays positive whatever an optimiser does; it can
/// be frozen, as any parameter. Under a softmax tau -> 0 gives a one-hot row at the largest logit, tau -> infinity even
/// weights: the dense-to-sparse gate with a trained temperature. NaN stays in its row. T = 0 is fine.
/// Nguyen, Akbarian, Ho 2024, "Is Temperature Sample Efficient for Softmax Gaussian Mixture of Experts?",
/// arXiv:2401.13875; Nie et al. 2021 (EvoMoE), arXiv:2112.14397.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/gate/decorator.hpp>
#include <sluice/gate/linear.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <cmath>
#include <limits>

namespace sluice::inline SLUICE_ISA {

template <typename Inner>
class tempered_gate : public gate_decorator<Inner> {
public:
  using scalar = typename Inner::scalar;
  struct tape : decorated_tape<Inner> {
    matrix_buffer<scalar> logits;   ///< [T,E] divided by tau
    matrix_buffer<scalar> dlogits;  ///< [T,E] of the inner gate
  };

  /// Throws std::invalid_argument unless tau > 0.
  explicit tempered_gate(Inner inner, double temperature = 1) : gate_decorator<Inner>(std::move(inner)) {
    if (is_nan(temperature) || !(temperature > 0) || temperature > (std::numeric_limits<scalar>::max)())
      throw_invalid("tempered_gate needs a temperature > 0, not ", temperature);
    temperature_ = {{1}, parameter_role::vector, initial_values::constant(std::log(temperature))};
  }

  scalar temperature() const { return std::exp(*temperature_.data()); }
  parameter<scalar>& log_temperature() noexcept { return temperature_; }

  void forward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_out<scalar> logits, tape& t) const {
    this->inner().forward(x, context, logits, t.inner);
    t.logits.resize(x.rows(), this->experts());
    const scalar tau = temperature();
    context.executor.parallel_each(x.rows(), 4 * this->experts(), [&](index_t r) {
      for (index_t e = 0; e < this->experts(); ++e) t.logits(r, e) = logits(r, e) /= tau;
    });
  }

  /// Adds into dx and into the gradients.
  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_in<scalar> dlogits, tape& t,
                tokens_out<scalar> dx) {
    t.dlogits.resize(x.rows(), this->experts());
    const scalar tau = temperature();
    context.executor.parallel_each(x.rows(), 4 * this->experts(), [&](index_t r) {
      for (index_t e = 0; e < this->experts(); ++e) t.dlogits(r, e) = dlogits(r, e) / tau;
    });
    temperature_.ensure_gradient();
    for (index_t r = 0; r < x.rows(); ++r)
      for (index_t e = 0; e < this->experts(); ++e)
        if (dlogits(r, e) != scalar(0))  // or the logit may be infinite
          temperature_.gradient()[0] -= dlogits(r, e) * t.logits(r, e);
    this->inner().backward(x, context, t.dlogits.map(), t.inner, dx);
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    gate_decorator<Inner>::visit_parameters(self, visit);
    visit("temperature", self.temperature_);
  }

private:
  parameter<scalar> temperature_;
};

static_assert(DifferentiableGate<tempered_gate<linear_gate<float>>>);

}  // namespace sluice::inline SLUICE_ISA
