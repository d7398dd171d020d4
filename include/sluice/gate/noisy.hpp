/// Noisy gate: an inner gate's logits, in training with normal noise, over a fixed temperature.
///
///   logits = (gate(x) + noise_std z) / temperature    z [T,E] standard normal, drawn at gate_noise_site t*E + e; only
///   dgate = dlogits / temperature                     in training and for noise_std > 0
///
/// Unlike a router's own noise it is divided by the temperature too, and inside of a per_group_gate there is one draw a
/// group. NaN stays in its row. T = 0 is fine. Gou et al. 2023 (MoCLE), arXiv:2312.12379.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/gate/decorator.hpp>
#include <sluice/gate/linear.hpp>

#include <limits>
#include <utility>

namespace sluice::inline SLUICE_ISA {

inline constexpr random_site gate_noise_site("gate.noise");

template <typename Inner>
class noisy_gate : public gate_decorator<Inner> {
public:
  using scalar = typename Inner::scalar;
  struct tape : decorated_tape<Inner> {
    matrix_buffer<scalar> dinner;  ///< [T,E]
  };
  struct options {
    scalar temperature = 1;
    scalar noise_std = 0;
  };

  /// Throws std::invalid_argument unless the temperature is positive and the deviation >= 0.
  noisy_gate(Inner inner, options o) : gate_decorator<Inner>(std::move(inner)), options_(o) {
    constexpr scalar most = (std::numeric_limits<scalar>::max)() / 2;
    if (is_nan(o.temperature) || !(o.temperature > 0 && o.temperature <= most))
      throw_invalid("noisy_gate needs a temperature > 0, not ", o.temperature);
    if (is_nan(o.noise_std) || !(o.noise_std >= 0 && o.noise_std <= most))
      throw_invalid("noisy_gate needs a finite deviation >= 0, not ", o.noise_std);
  }

  void forward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_out<scalar> logits, tape& t) const {
    this->inner().forward(x, context, logits, t.inner);
    const bool is_noisy = context.training && options_.noise_std > 0;
    if (!is_noisy && options_.temperature == scalar(1)) return;
    const index_t experts = this->experts();
    context.executor.parallel_each(x.rows(), (is_noisy ? 100 : 1) * experts, [&](index_t row) {
      for (index_t e = 0; e < experts; ++e) {
        scalar& logit = logits(row, e);
        if (is_noisy)
          logit += options_.noise_std * static_cast<scalar>(context.random.normal(gate_noise_site, row * experts + e));
        logit /= options_.temperature;
      }
    });
  }

  /// Adds into dx and into the gradients.
  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_in<scalar> dlogits, tape& t,
                tokens_out<scalar> dx) {
    t.dinner.resize(dlogits.rows(), dlogits.cols());
    t.dinner.map() = dlogits / options_.temperature;
    this->inner().backward(x, context, t.dinner.map(), t.inner, dx);
  }

private:
  options options_;
};

static_assert(DifferentiableGate<noisy_gate<linear_gate<float>>>);

}  // namespace sluice::inline SLUICE_ISA
