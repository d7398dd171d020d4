/// A quantiser of tokens that are kept within bounds, smoothly: z = c tanh(x / c), dx = (1 - tanh^2(x / c)) dz.
///
///   soft_clamped lfq{lookup_free_quantizer<float>{18}, 2};       soft_clamped{inner, {1.25f, 1.5f}}  a bound a number
///
/// In front of a lookup-free or a residual finite-scalar quantiser it keeps x where codes are. ids, decode, losses and
/// parameters are the inner quantiser's, of z. Everything else: codebook/structure/quantizer_decorator.hpp.
#pragma once

#include <sluice/codebook/structure/quantizer_decorator.hpp>
#include <sluice/kernel/activation.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <limits>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

template <Quantizer Inner>
class soft_clamped : public quantizer_decorator<soft_clamped<Inner>, Inner> {
  using base = quantizer_decorator<soft_clamped, Inner>;
  friend base;

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;

  /// Throws std::invalid_argument unless every number of x has a bound, finite and above 0.
  soft_clamped(Inner inner, std::vector<scalar> bounds) : base(std::move(inner)), bounds_(std::move(bounds)) {
    if (static_cast<index_t>(bounds_.size()) != this->inputs())
      throw_invalid("a soft clamp of ", this->inputs(), " numbers has ", bounds_.size(), " bounds");
    for (const scalar bound : bounds_)
      if (!is_above(bound, 0) || bound > (std::numeric_limits<scalar>::max)())
        throw_invalid("a soft clamp needs a finite bound above 0, not ", bound);
  }
  soft_clamped(Inner inner, scalar bound) : soft_clamped(inner, std::vector<scalar>(as_size(inner.inputs()), bound)) {}

  const std::vector<scalar>& bounds() const noexcept { return bounds_; }

private:
  void before(tokens_in<scalar> x, tokens_out<scalar> z, detail::no_memory&, const context_type& context) const {
    context.executor.parallel_each(x.rows(), 16 * this->inputs(), [&](index_t t) {
      kernel::transform(
          this->inputs(), [](auto v, auto c) { return c * hyperbolic_tangent::value(v / c); }, &z(t, 0),
          x.data() + t * x.outerStride(), bounds_.data());
    });
  }
  void after(tokens_in<scalar> q, tokens_out<scalar> y, detail::no_memory&, const executor_ref&) const { y = q; }
  void after_backward(tokens_in<scalar> dy, tokens_out<scalar> dq, tape&) { dq = dy; }
  void before_backward(tokens_in<scalar> dz, tokens_out<scalar> dx, tape& t) {
    const auto x = t.kept.x();
    t.context.executor.parallel_each(x.rows(), 16 * this->inputs(), [&](index_t r) {
      kernel::transform(
          this->inputs(),
          [](auto sum, auto d, auto v, auto c) { return sum + d * hyperbolic_tangent::derivative(v / c); }, &dx(r, 0),
          std::as_const(dx).data() + r * dx.outerStride(), dz.data() + r * dz.outerStride(),
          x.data() + r * x.outerStride(), bounds_.data());
    });
  }

  std::vector<scalar> bounds_;
};

}  // namespace sluice::inline SLUICE_ISA
