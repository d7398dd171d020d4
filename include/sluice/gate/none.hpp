/// No gate: logits [T,E] are zero, there are no parameters and x has no gradient from here.
///
/// For rules that route by something else than scores: token ids (hash routes), modalities, a fixed or random
/// partition. What such a rule needs stands in the context. T = 0 is fine; NaN in a token still makes that token
/// invalid.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/error.hpp>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class no_gate {
public:
  using scalar = Scalar;
  struct tape {};

  /// Throws std::invalid_argument unless D >= 1 and E >= 1.
  no_gate(index_t inputs, index_t experts) : inputs_(inputs), experts_(experts) {
    if (inputs < 1 || experts < 1)
      throw_invalid("no_gate needs D >= 1 and E >= 1, not D = ", inputs, ", E = ", experts);
  }

  index_t inputs() const noexcept { return inputs_; }
  index_t experts() const noexcept { return experts_; }

  void forward(tokens_in<Scalar>, const routing_context<Scalar>&, tokens_out<Scalar> logits, tape&) const {
    logits.setZero();
  }
  void backward(tokens_in<Scalar>, const routing_context<Scalar>&, tokens_in<Scalar>, tape&, tokens_out<Scalar>) {}

private:
  index_t inputs_;
  index_t experts_;
};

static_assert(DifferentiableGate<no_gate<float>>);

}  // namespace sluice::inline SLUICE_ISA
