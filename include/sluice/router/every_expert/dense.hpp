/// Dense routing: every token goes to every expert with weight 1, and nothing is learned.
///
///   y[t] = sum over e of f_e(x[t])
///
/// With one expert it makes a mixture layer a plain feed-forward layer (layer/dense.hpp). Of a token's experts the one
/// with the lowest index has rank 0. A token with NaN gets no expert and output NaN, so that it reaches no gradient.
/// Padding is not routed. The k of a call is for other layers. T = 0 is fine.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/sparse_plan.hpp>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class dense_router {
public:
  using scalar = Scalar;
  using plan = sparse_plan<Scalar>;
  struct tape {};

  /// Throws std::invalid_argument unless D >= 1 and E >= 1.
  dense_router(index_t inputs, index_t experts) : inputs_(inputs), experts_(experts) {
    if (inputs < 1 || experts < 1)
      throw_invalid("dense_router needs D >= 1 and E >= 1, not D = ", inputs, ", E = ", experts);
  }

  index_t inputs() const noexcept { return inputs_; }
  index_t experts() const noexcept { return experts_; }

  void route(tokens_in<Scalar> x, const routing_context<Scalar>& context, plan& p, tape&) const {
    check_tokens(x, inputs(), context);
    p.reset(x.rows(), experts_, x.rows() * experts_);
    for (index_t token = 0; token < x.rows(); ++token) {
      if (context.is_padding(token)) continue;
      if (any_nan(x.data() + token * x.outerStride(), x.cols()))
        p.mark_invalid(token);
      else
        for (index_t e = 0; e < experts_; ++e) p.add(token, e, Scalar(1), e);
    }
    p.finish();
  }

  void backward(tokens_in<Scalar>, const routing_context<Scalar>&, const plan&, const typename plan::gradient&, tape&,
                tokens_out<Scalar>) {}

private:
  index_t inputs_;
  index_t experts_;
};

static_assert(DifferentiableRouter<dense_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
