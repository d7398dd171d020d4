/// Activated gate: an activation over the logits of an inner gate, and an offset an expert.
///
///   logits = phi(G) + b0,  b0 [E]             dG = dlogits phi'(G);   db0 = sum over tokens of dlogits
///
/// phi is a struct with value(z) and derivative(z), as those of kernel/activation.hpp. Parameter: offset b0 [E],
/// initially 0. Inside a tempered_gate and under a softmax it is the activation dense-to-sparse gate,
///   softmax((phi(<b1_i, x>) + b0_i) / tau),   phi a sigmoid, tanh or GELU
/// in which, unlike in the plain one (no_activation), temperature and slopes cannot stand in for each other, so that
/// estimates converge faster: router/every_expert/dense_softmax.hpp over tempered_gate<activated_gate<...>>. NaN stays
/// in its row. T = 0 is fine. The paper states no constants.
/// Nguyen, Akbarian, Ho 2024, "Is Temperature Sample Efficient for Softmax Gaussian Mixture of Experts?",
/// arXiv:2401.13875.
#pragma once

#include <sluice/gate/decorator.hpp>
#include <sluice/gate/linear.hpp>
#include <sluice/kernel/activation.hpp>

namespace sluice::inline SLUICE_ISA {

template <typename Inner, typename Phi = sigmoid>
class activated_gate : public gate_decorator<Inner> {
public:
  using scalar = typename Inner::scalar;
  static constexpr bool shows_nan = false;  // phi may be anybody's
  static_assert(Activation<Phi, scalar>, "sluice: activated_gate needs static value(z) and derivative(z)");

  struct tape : decorated_tape<Inner> {
    matrix_buffer<scalar> logits;   ///< [T,E] of the inner gate
    matrix_buffer<scalar> dlogits;  ///< [T,E] of the inner gate
  };

  explicit activated_gate(Inner inner) : gate_decorator<Inner>(std::move(inner)) {
    offset_ = {{this->experts()}, parameter_role::vector};
  }

  parameter<scalar>& offset() noexcept { return offset_; }

  void forward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_out<scalar> logits, tape& t) const {
    t.logits.resize(x.rows(), this->experts());
    this->inner().forward(x, context, t.logits.map(), t.inner);
    context.executor.parallel_each(x.rows(), 16 * this->experts(), [&](index_t r) {
      for (index_t e = 0; e < this->experts(); ++e) logits(r, e) = Phi::value(t.logits(r, e)) + offset_.data()[e];
    });
  }

  /// Adds into dx and into the gradients.
  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_in<scalar> dlogits, tape& t,
                tokens_out<scalar> dx) {
    t.dlogits.resize(x.rows(), this->experts());
    context.executor.parallel_each(x.rows(), 16 * this->experts(), [&](index_t r) {
      for (index_t e = 0; e < this->experts(); ++e) {
        const scalar d = dlogits(r, e);  // 0 for hidden tokens, whose logits may be anything
        t.dlogits(r, e) = d == scalar(0) ? scalar(0) : d * Phi::derivative(t.logits(r, e));
      }
    });
    add_column_sums(dlogits, offset_.gradient());
    this->inner().backward(x, context, t.dlogits.map(), t.inner, dx);
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    gate_decorator<Inner>::visit_parameters(self, visit);
    visit("offset", self.offset_);
  }

private:
  parameter<scalar> offset_;
};

static_assert(DifferentiableGate<activated_gate<linear_gate<float>>>);

}  // namespace sluice::inline SLUICE_ISA
