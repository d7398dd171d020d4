/// Neuron gate: an expert scores as much as one hidden unit of it would put out, read off its own weights.
///
///   g = x G^T, u = x U^T [T,E]   logits = |phi(g) u|        G, U [E,D]: row e is a unit of expert e's gated network
///   dg = s dlogits phi'(g) u,  du = s dlogits phi(g),  s the sign of phi(g) u, 0 at 0
///
/// The analytic router of CMoE, which carves experts out of a dense gated network: G and U are the gate and up rows of
/// every cluster's representative unit, each of length 1 (set_units does that), so that nothing has to be learned. Its
/// layer routes by softmax of these scores with a selection bias, weights 1 + a_e p_e, and a shared expert beside:
///
///   residual_weights_router router{sigmoid_router<float, dynamic, dynamic, neuron_magnitude_gate<float>>{gate,
///       {.top_k = 2, .renormalize = false, .scores = expert_scores::softmax}}, {.per_expert = true}};
///
/// Logits are not negative. NaN stays in its row. T = 0 is fine. Initial values: G and U normal with deviation
/// 1/sqrt(D). Pei et al. 2025, arXiv:2502.04416.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/kernel/activation.hpp>
#include <sluice/kernel/linear.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar, Activation<Scalar> Phi = silu>
class neuron_magnitude_gate {
public:
  using scalar = Scalar;
  static constexpr bool shows_nan = false;  // phi may be anybody's
  struct tape {
    matrix_buffer<Scalar> gate, up;    ///< [T,E] g and u
    matrix_buffer<Scalar> dgate, dup;  ///< [T,E]
  };

  /// Throws std::invalid_argument unless D and E are at least 1.
  neuron_magnitude_gate(index_t inputs, index_t experts) {
    if (inputs < 1 || experts < 1)
      throw_invalid("neuron_magnitude_gate needs D, E >= 1, not D = ", inputs, ", E = ", experts);
    for (auto* weight : {&gate_, &up_})
      *weight = {{experts, inputs},
                 parameter_role::weight,
                 initial_values::normal(1 / std::sqrt(static_cast<double>(inputs)))};
  }

  index_t inputs() const noexcept { return gate_.cols(); }
  index_t experts() const noexcept { return gate_.rows(); }

  /// Takes the rows of gate and up [E,D] at length 1; rows of zeros stay. Throws std::invalid_argument for other
  /// shapes.
  void set_units(const matrix<Scalar>& gate, const matrix<Scalar>& up) {
    for (const auto* rows : {&gate, &up})
      if (rows->rows() != experts() || rows->cols() != inputs())
        throw_invalid("the gate needs units [", experts(), ", ", inputs(), "], not [", rows->rows(), ", ", rows->cols(),
                      "]");
    const auto take = [&](const matrix<Scalar>& rows, parameter<Scalar>& weight) {
      matrix<Scalar> units = rows;
      for (index_t e = 0; e < experts(); ++e)
        if (const Scalar length = units.row(e).norm(); length > Scalar(0)) units.row(e) /= length;
      weight.assign(units);
    };
    take(gate, gate_);
    take(up, up_);
  }

  void forward(tokens_in<Scalar> x, const routing_context<Scalar>& context, tokens_out<Scalar> logits, tape& t) const {
    t.gate.resize(x.rows(), experts());
    t.up.resize(x.rows(), experts());
    linear_forward<Scalar>(x, gate_, t.gate.map(), context.executor);
    linear_forward<Scalar>(x, up_, t.up.map(), context.executor);
    context.executor.parallel_each(x.rows(), 16 * experts(), [&](index_t r) {
      for (index_t e = 0; e < experts(); ++e) logits(r, e) = (std::abs)(Scalar(Phi::value(t.gate(r, e))) * t.up(r, e));
    });
  }

  /// Adds into dx and into the gradients.
  void backward(tokens_in<Scalar> x, const routing_context<Scalar>& context, tokens_in<Scalar> dlogits, tape& t,
                tokens_out<Scalar> dx) {
    t.dgate.resize(x.rows(), experts());
    t.dup.resize(x.rows(), experts());
    context.executor.parallel_each(x.rows(), 16 * experts(), [&](index_t r) {
      for (index_t e = 0; e < experts(); ++e) {
        const Scalar value = Scalar(Phi::value(t.gate(r, e))), product = value * t.up(r, e), d = dlogits(r, e);
        const Scalar push = product > Scalar(0) ? d : product < Scalar(0) ? -d : Scalar(0);
        t.dgate(r, e) = push == Scalar(0) ? Scalar(0) : push * Scalar(Phi::derivative(t.gate(r, e))) * t.up(r, e);
        t.dup(r, e) = push == Scalar(0) ? Scalar(0) : push * value;
      }
    });
    linear_backward<Scalar>(x, gate_, t.dgate.map(), dx, context.executor);
    linear_backward<Scalar>(x, up_, t.dup.map(), dx, context.executor);
  }

  parameter<Scalar>& gate() noexcept { return gate_; }
  parameter<Scalar>& up() noexcept { return up_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("gate", self.gate_);
    visit("up", self.up_);
  }

private:
  parameter<Scalar> gate_;
  parameter<Scalar> up_;
};

static_assert(DifferentiableGate<neuron_magnitude_gate<float>>);

}  // namespace sluice::inline SLUICE_ISA
