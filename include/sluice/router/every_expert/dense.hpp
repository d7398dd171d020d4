/// Dense routing: every token goes to every expert with weight 1, and nothing is learned.
///
///   y[t] = sum over e of f_e(x[t])
///
/// With one expert it makes a mixture layer a plain feed-forward layer (layer/dense.hpp). Of a token's experts the one
/// with the lowest index has rank 0. A token with NaN gets no expert and output NaN, so that it reaches no gradient.
/// Padding is not routed. The k of a call is for other layers. T = 0 is fine.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/concepts.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/sparse_plan.hpp>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class dense_router {
public:
  using scalar = Scalar;
  using plan = sparse_plan<Scalar>;
  struct tape {
    buffer<Scalar> all;  ///< [E] 1: every expert
    buffer<std::uint8_t> is_routed;
  };

  /// Throws std::invalid_argument unless D >= 1 and E >= 1.
  dense_router(index_t inputs, index_t experts) : inputs_(inputs), experts_(experts) {
    if (inputs < 1 || experts < 1)
      throw_invalid("dense_router needs D >= 1 and E >= 1, not D = ", inputs, ", E = ", experts);
  }

  index_t inputs() const noexcept { return inputs_; }
  index_t experts() const noexcept { return experts_; }

  void route(tokens_in<Scalar> x, const routing_context<Scalar>& context, plan& p, tape& t) const {
    check_tokens(x, inputs(), context);
    p.reset(x.rows(), experts_);
    t.all.assign(experts_, Scalar(1));
    t.is_routed.resize(x.rows());
    for (index_t token = 0; token < x.rows(); ++token) {
      const bool is_padding = context.is_padding(token);
      const bool is_invalid = !is_padding && any_nan(x.data() + token * x.outerStride(), x.cols());
      if (is_invalid) p.mark_invalid(token);
      t.is_routed[token] = !is_padding && !is_invalid;
    }
    p.assign_positive([&](index_t token) { return t.is_routed[token] ? t.all.data() : nullptr; },
                      [](index_t, index_t) { return Scalar(1); });
  }

  void backward(tokens_in<Scalar>, const routing_context<Scalar>&, const plan&, const typename plan::gradient&, tape&,
                tokens_out<Scalar>) {}

private:
  index_t inputs_;
  index_t experts_;
};

static_assert(DifferentiableRouter<dense_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
