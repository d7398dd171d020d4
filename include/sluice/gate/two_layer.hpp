/// Two-layer gate: logits [T,E] = phi(x [T,D] W1^T) W2^T, phi = tanh (MoE++) or ReLU (deep mixtures).
///
/// Parameters: weight1 W1 [H,D], weight2 W2 [E,H], no biases; H is 8E unless told otherwise.
/// Gradients: da = dlogits W2;  dz = da (1 - a^2), or da where a > 0;  dx += dz W1;  dW2 += dlogits^T a;  dW1 += dz^T x
/// A token takes H (D + E) multiplications and H activations, a linear gate D E: with H = 8E, 8 (1 + E / D) times as
/// many. NaN in a token gives NaN in all its logits. T = 0 is fine. Initial values: normal with deviation
/// 1/sqrt(fan-in). Jin et al. 2024 (MoE++), arXiv:2410.07348, released code; Eigen, Ranzato, Sutskever 2014,
/// arXiv:1312.4314.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/kernel/activation.hpp>
#include <sluice/kernel/linear.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

enum class gate_activation { tanh, relu };

template <FloatOrDouble Scalar>
class two_layer_gate {
public:
  using scalar = Scalar;
  struct tape {
    matrix_buffer<Scalar> a;  ///< [T,H] phi(x W1^T)
    matrix_buffer<Scalar> da;
  };
  struct options {
    index_t hidden = 0;  ///< H; 0 means 8E
    gate_activation activation = gate_activation::tanh;
  };

  /// Throws std::invalid_argument unless D >= 1, E >= 1 and H >= 0.
  two_layer_gate(index_t inputs, index_t experts, options o = {}) : activation_(o.activation) {
    if (inputs < 1 || experts < 1 || o.hidden < 0)
      throw_invalid("two_layer_gate needs D >= 1, E >= 1 and H >= 0, not D = ", inputs, ", E = ", experts,
                    ", H = ", o.hidden);
    const index_t hidden = o.hidden == 0 ? 8 * experts : o.hidden;
    weight1_ = {
        {hidden, inputs}, parameter_role::weight, initial_values::normal(1 / std::sqrt(static_cast<double>(inputs)))};
    weight2_ = {
        {experts, hidden}, parameter_role::weight, initial_values::normal(1 / std::sqrt(static_cast<double>(hidden)))};
  }

  index_t inputs() const noexcept { return weight1_.cols(); }
  index_t hidden() const noexcept { return weight1_.rows(); }
  index_t experts() const noexcept { return weight2_.rows(); }

  void forward(tokens_in<Scalar> x, const routing_context<Scalar>& context, tokens_out<Scalar> logits, tape& t) const {
    t.a.resize(x.rows(), hidden());
    linear_forward<Scalar>(x, weight1_, t.a.map(), context.executor);
    context.executor.parallel_each(t.a.rows(), 16 * t.a.cols(), [&](index_t r) {
      is_tanh() ? activate<hyperbolic_tangent>(t.a.row(r)) : activate<relu>(t.a.row(r));
    });
    linear_forward<Scalar>(t.a.map(), weight2_, logits, context.executor);
  }

  /// Adds into dx and into the gradients.
  void backward(tokens_in<Scalar> x, const routing_context<Scalar>& context, tokens_in<Scalar> dlogits, tape& t,
                tokens_out<Scalar> dx) {
    t.da.set_zero(x.rows(), hidden());
    linear_backward<Scalar>(t.a.map(), weight2_, dlogits, t.da.map(), context.executor);
    context.executor.parallel_each(t.a.rows(), 16 * t.a.cols(), [&](index_t r) {
      for (index_t h = 0; h < hidden(); ++h)
        t.da(r, h) *= is_tanh() ? 1 - t.a(r, h) * t.a(r, h) : static_cast<Scalar>(t.a(r, h) > Scalar(0));
    });
    linear_backward<Scalar>(x, weight1_, t.da.map(), dx, context.executor);
  }

  parameter<Scalar>& weight1() noexcept { return weight1_; }
  parameter<Scalar>& weight2() noexcept { return weight2_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("weight1", self.weight1_);
    visit("weight2", self.weight2_);
  }

private:
  bool is_tanh() const noexcept { return activation_ == gate_activation::tanh; }

  template <typename Phi>
  void activate(Scalar* row) const {
    kernel::transform(
        hidden(), [](const auto& z) { return Phi::value(z); }, row, static_cast<const Scalar*>(row));
  }

  gate_activation activation_;
  parameter<Scalar> weight1_;
  parameter<Scalar> weight2_;
};

static_assert(DifferentiableGate<two_layer_gate<float>>);

}  // namespace sluice::inline SLUICE_ISA
