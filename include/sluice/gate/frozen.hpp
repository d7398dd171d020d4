/// A gate that does not learn: its parameters stay as they were drawn, loaded or written, and are saved with the model.
///
///   frozen_gate<linear_gate<float>> gate{64, 8};      frozen_gate gate{linear_gate<float>{64, 8, {.bias = true}}};
///
/// Optimisers leave it alone, and linear gates spend no time on gradients of theirs; x gets its gradient as ever. A
/// random frozen gate is all that SMoE-Dropout routes by (router/over_training/scheduled_k.hpp). Chen et al. 2023,
/// arXiv:2303.01610.
#pragma once

#include <sluice/gate/decorator.hpp>
#include <sluice/gate/linear.hpp>

#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Inner>
class frozen_gate : public gate_decorator<Inner> {
  using base = gate_decorator<Inner>;

public:
  using typename base::scalar;
  using tape = decorated_tape<Inner>;

  explicit frozen_gate(Inner inner) : base(std::move(inner)) {
    detail::for_each_unnamed_parameter(this->inner(), [](auto& p) { p.set_frozen(true); });
  }
  frozen_gate(index_t inputs, index_t experts)
    requires std::constructible_from<Inner, index_t, index_t>
      : frozen_gate(Inner(inputs, experts)) {}

  void forward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_out<scalar> logits, tape& t) const {
    this->inner().forward(x, context, logits, t.inner);
  }
  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_in<scalar> dlogits, tape& t,
                tokens_out<scalar> dx) {
    this->inner().backward(x, context, dlogits, t.inner, dx);
  }
};

static_assert(DifferentiableGate<frozen_gate<linear_gate<float>>>);

}  // namespace sluice::inline SLUICE_ISA
