/// Random gate: fresh scores for every token of every call, whatever the token holds.
///
///   logits [T,E] = independent draws, uniform in (0, 1), at random_gate::site, position t*E + e
///
/// No parameters, no gradient for x. There is nothing else to choose by, so scores are drawn at inference too, but
/// always the same ones for a place in the batch, whatever context.random is. Not causal, for that place decides. What
/// SMoE-Dropout compares its frozen gate with. NaN in a token still makes that token invalid; T = 0 is fine. Chen et
/// al. 2023, arXiv:2303.01610.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/error.hpp>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class random_gate {
public:
  using scalar = Scalar;
  static constexpr bool causal = false;
  static constexpr random_site site{"random_gate.logits"};
  struct tape {};

  /// Throws std::invalid_argument unless D >= 1 and E >= 1.
  random_gate(index_t inputs, index_t experts) : inputs_(inputs), experts_(experts) {
    if (inputs < 1 || experts < 1)
      throw_invalid("random_gate needs D >= 1 and E >= 1, not D = ", inputs, ", E = ", experts);
  }

  index_t inputs() const noexcept { return inputs_; }
  index_t experts() const noexcept { return experts_; }

  void forward(tokens_in<Scalar> x, const routing_context<Scalar>& context, tokens_out<Scalar> logits, tape&) const {
    const random_source random = context.training ? context.random : random_source();
    context.executor.parallel_each(x.rows(), 16 * experts_, [&](index_t t) {
      for (index_t e = 0; e < experts_; ++e) logits(t, e) = static_cast<Scalar>(random.uniform(site, t * experts_ + e));
    });
  }
  void backward(tokens_in<Scalar>, const routing_context<Scalar>&, tokens_in<Scalar>, tape&, tokens_out<Scalar>) {}

private:
  index_t inputs_;
  index_t experts_;
};

static_assert(DifferentiableGate<random_gate<float>>);

}  // namespace sluice::inline SLUICE_ISA
