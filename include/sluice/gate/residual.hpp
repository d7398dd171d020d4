/// Gating residual: the previous mixture layer's logits help to score, and get a gradient back.
///
///   logits [T,E] = gate(x) + G R^T        G [T,E] = context.previous_logits, R [E,E] without bias
///   dR += dlogits^T G;  dG = dlogits R    kept in the tape: previous_logits_gradient()
///
/// G are the logits `seen.clean` of the layer before, for the same tokens. Training two linked layers:
///
///   first.forward(x, h, tape1);           context.previous_logits = std::as_const(tape1.router.seen.clean).map();
///   second.forward(h, y, tape2, context); second.backward(dy, dh, tape2);
///   tape1.router.dseen.clean.map() += tape2.router.gate.previous_logits_gradient().map();
///   first.backward(dh, dx, tape1);
///
/// NaN in a row of G makes that token's logits NaN and reaches no gradient.
/// Without previous logits a call throws std::invalid_argument, unless options.optional is set (a first layer of the
/// same type): then the inner gate alone scores and previous_logits_gradient() is empty.
/// Parameters: those of the inner gate and residual R, uniform within 1/sqrt(E) at the start.
/// Jin et al. 2024 (MoE++), arXiv:2410.07348.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/token_screen.hpp>
#include <sluice/gate/decorator.hpp>
#include <sluice/gate/linear.hpp>
#include <sluice/kernel/linear.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

template <typename Inner>
class residual_gate : public gate_decorator<Inner> {
  using base = gate_decorator<Inner>;

public:
  using scalar = typename Inner::scalar;
  struct tape {
    typename Inner::tape inner;
    token_screen<scalar> previous;  ///< padding and NaN among the previous logits
    matrix_buffer<scalar> dprevious;

    /// [T,E] after backward, or empty if the forward call had no previous logits.
    const matrix_buffer<scalar>& previous_logits_gradient() const noexcept { return dprevious; }
  };
  struct options {
    bool optional = false;  ///< a call without previous logits is fine
  };

  explicit residual_gate(Inner inner, options o = {}) : base(std::move(inner)), options_(o) {
    const index_t experts = this->experts();
    residual_ = {{experts, experts},
                 parameter_role::weight,
                 initial_values::uniform(1 / std::sqrt(static_cast<double>(experts)))};
  }
  residual_gate(index_t inputs, index_t experts, options o = {})
    requires std::constructible_from<Inner, index_t, index_t>
      : residual_gate(Inner(inputs, experts), o) {}

  void forward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_out<scalar> logits, tape& t) const {
    this->inner().forward(x, context, logits, t.inner);
    const auto& previous = context.previous_logits;
    t.dprevious.clear();
    if (!previous) {
      if (!options_.optional && x.rows() > 0)
        throw_invalid("residual_gate needs routing_context.previous_logits [T, E] = [", x.rows(), ", ", this->experts(),
                      "], the logits of the layer before; for a first layer set options.optional");
      return;
    }
    validate(previous, x.rows());
    t.previous.hide(previous.map(), context);
    const auto seen = t.previous.of(previous.map());
    const index_t work = this->experts() * this->experts() / 4;
    context.executor.parallel_blocks(x.rows(), detail::linear_row_block, work, [&](index_t begin, index_t end) {
      kernel::multiply_nt(end - begin, this->experts(), this->experts(), seen.data() + begin * seen.outerStride(),
                          seen.outerStride(), residual_.data(), this->experts(), &logits(begin, 0),
                          logits.outerStride(), kernel::write::accumulate);
    });
    for (index_t token = 0; token < x.rows(); ++token)
      if (t.previous.is_invalid(token)) logits.row(token).setConstant(quiet_nan<scalar>());
  }

  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_in<scalar> dlogits, tape& t,
                tokens_out<scalar> dx) {
    this->inner().backward(x, context, dlogits, t.inner, dx);
    if (!context.previous_logits) return;
    validate(context.previous_logits, x.rows());
    t.dprevious.set_zero(x.rows(), this->experts());
    linear_backward<scalar>(t.previous.of(context.previous_logits.map()), residual_, dlogits, t.dprevious.map(),
                            context.executor);
  }

  parameter<scalar>& residual() noexcept { return residual_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    base::visit_parameters(self, visit);
    visit("residual", self.residual_);
  }

private:
  void validate(const optional_matrix<scalar>& previous, index_t tokens) const {
    if (previous.rows != tokens || previous.cols != this->experts())
      throw_invalid("residual_gate needs routing_context.previous_logits [T, E] = [", tokens, ", ", this->experts(),
                    "], not [", previous.rows, ", ", previous.cols, "]; linked layers need equally many experts");
  }

  options options_;
  parameter<scalar> residual_;
};

static_assert(DifferentiableGate<residual_gate<linear_gate<float>>>);

}  // namespace sluice::inline SLUICE_ISA
