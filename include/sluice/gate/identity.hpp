/// Identity gate: the tokens are the logits. T x E in, T x E out, no parameters.
///
///   logits = x;  dx += dlogits
///
/// For scores that come from elsewhere: inside of a per_group_gate they are context.group_features, made by a network
/// of its own (AdvMoE). NaN in a token makes all its logits NaN. T = 0 is fine.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class identity_gate {
public:
  using scalar = Scalar;
  static constexpr bool shows_nan = true;
  struct tape {};

  /// Throws std::invalid_argument unless E >= 1.
  explicit identity_gate(index_t experts) : experts_(experts) {
    if (experts < 1) throw_invalid("identity_gate needs E >= 1, not ", experts);
  }

  index_t inputs() const noexcept { return experts_; }
  index_t experts() const noexcept { return experts_; }

  void forward(tokens_in<Scalar> x, const routing_context<Scalar>&, tokens_out<Scalar> logits, tape&) const {
    logits = x;
    for (index_t row = 0; row < x.rows(); ++row)
      if (any_nan(x.data() + row * x.outerStride(), experts_)) logits.row(row).setConstant(quiet_nan<Scalar>());
  }
  void backward(tokens_in<Scalar>, const routing_context<Scalar>&, tokens_in<Scalar> dlogits, tape&,
                tokens_out<Scalar> dx) {
    dx += dlogits;
  }

private:
  index_t experts_;
};

static_assert(DifferentiableGate<identity_gate<float>>);

}  // namespace sluice::inline SLUICE_ISA
