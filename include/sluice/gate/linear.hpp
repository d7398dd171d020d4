/// Linear gate: one score per expert.
///   logits [T,E] = x [T,D] W^T [D,E] (+ b [E])
/// Parameters: weight [E,D], bias [E] if asked for. NaN in a token gives NaN in all its logits. T = 0 is fine.
/// Initial values: normal with deviation 1/sqrt(D), bias zero. Frozen parameters get no gradient, x does.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/kernel/linear.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class linear_gate {
public:
  using scalar = Scalar;
  static constexpr bool shows_nan = true;  // NaN times any weight, 0 too, is NaN
  struct tape {};
  struct options {
    bool bias = false;
  };

  /// Throws std::invalid_argument unless D >= 1 and E >= 1.
  linear_gate(index_t inputs, index_t experts, options o = {}) : has_bias_(o.bias) {
    if (inputs < 1 || experts < 1)
      throw_invalid("linear_gate needs D >= 1 and E >= 1, not D = ", inputs, ", E = ", experts);
    weight_ = {
        {experts, inputs}, parameter_role::weight, initial_values::normal(1 / std::sqrt(static_cast<double>(inputs)))};
    if (has_bias_) bias_ = {{experts}, parameter_role::vector};
  }

  index_t inputs() const noexcept { return weight_.cols(); }
  index_t experts() const noexcept { return weight_.rows(); }

  void forward(tokens_in<Scalar> x, const routing_context<Scalar>& context, tokens_out<Scalar> logits, tape&) const {
    linear_forward(x, weight_, logits, context.executor);
    if (has_bias_) logits.rowwise() += bias_.map().col(0).transpose();
  }

  /// Adds into dx and into the gradients.
  void backward(tokens_in<Scalar> x, const routing_context<Scalar>& context, tokens_in<Scalar> dlogits, tape&,
                tokens_out<Scalar> dx) {
    linear_backward(x, weight_, dlogits, dx, context.executor);
    if (has_bias_ && bias_.is_learned()) add_column_sums(dlogits, bias_.gradient());
  }

  bool has_bias() const noexcept { return has_bias_; }
  parameter<Scalar>& weight() noexcept { return weight_; }
  parameter<Scalar>& bias() noexcept { return bias_; }
  const parameter<Scalar>& weight() const noexcept { return weight_; }
  const parameter<Scalar>& bias() const noexcept { return bias_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("weight", self.weight_);
    if (self.has_bias_) visit("bias", self.bias_);
  }

private:
  bool has_bias_;
  parameter<Scalar> weight_;
  parameter<Scalar> bias_;
};

static_assert(DifferentiableGate<linear_gate<float>>);

}  // namespace sluice::inline SLUICE_ISA
