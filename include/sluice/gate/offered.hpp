/// A gate of which every token sees those experts only that were offered to it; the logits of all others are -infinity.
///
///   offered to t: row t of context.expert_ids [T,K], up to the first no_expert     L'[t,e] = L[t,e] where e is offered
///
/// A coarse choice made elsewhere, by a language model or by the layer before, of which this gate's router makes a
/// finer one: offered_router (router/masked/offered.hpp) chooses and weighs. What is not offered has probability 0 and
/// no gradient. An expert that is named twice is offered once; nothing offered leaves a token without experts. A call
/// without ids, or with an expert outside 0..E-1, throws std::invalid_argument with its numbers; rows of padding may
/// hold anything. Causal if the gate inside is. T = 0 is fine. Zong et al. 2024 (MoVA), arXiv:2404.13046, gives its
/// gate such a mask of vision encoders.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/choices.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/gate/decorator.hpp>
#include <sluice/gate/linear.hpp>
#include <sluice/kernel/order.hpp>

#include <algorithm>
#include <cstdint>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Inner>
class offered_gate : public gate_decorator<Inner> {
  using base = gate_decorator<Inner>;

public:
  using typename base::scalar;
  struct tape : decorated_tape<Inner> {
    matrix_buffer<std::uint8_t> is_offered;  ///< [T,E]
    matrix_buffer<scalar> dlogits;
  };

  explicit offered_gate(Inner inner) : base(std::move(inner)) {}
  offered_gate(index_t inputs, index_t experts) requires std::constructible_from<Inner, index_t, index_t>
      : base(Inner(inputs, experts)) {}

  void forward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_out<scalar> logits, tape& t) const {
    read_offers(context, x.rows(), t.is_offered);
    this->inner().forward(x, context, logits, t.inner);
    for_others(t, [&](index_t token, index_t e) {
      // A NaN stays: it is what shows that a token is invalid.
      if (!is_nan(logits(token, e))) logits(token, e) = kernel::number_of_key<scalar>(-kernel::infinity_key<scalar>);
    });
  }

  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_in<scalar> dlogits, tape& t,
                tokens_out<scalar> dx) {
    t.dlogits.resize(dlogits.rows(), dlogits.cols());
    t.dlogits.map() = dlogits;
    for_others(t, [&](index_t token, index_t e) { t.dlogits(token, e) = 0; });
    this->inner().backward(x, context, t.dlogits.map(), t.inner, dx);
  }

private:
  void read_offers(const routing_context<scalar>& context, index_t tokens,
                   matrix_buffer<std::uint8_t>& is_offered) const {
    const auto& given = context.expert_ids;
    if (tokens > 0 && (!given || given.rows != tokens))
      throw_invalid("offered_gate needs routing_context.expert_ids, a row for each of ", tokens, " tokens; there are ",
                    given.rows);
    is_offered.resize(tokens, this->experts());
    for (index_t t = 0; t < tokens; ++t) {
      // Padding is offered everything: its logits are nobody's.
      std::fill_n(is_offered.row(t), this->experts(), std::uint8_t(context.is_padding(t)));
      if (context.is_padding(t)) continue;
      for (index_t j = 0; j < given.cols; ++j) {
        const index_t e = given.data[t * given.cols + j];
        if (e == no_expert) break;
        if (e < 0 || e >= this->experts())
          throw_invalid("token ", t, " is offered expert ", e, " of E = ", this->experts());
        is_offered(t, e) = 1;
      }
    }
  }

  template <typename F>
  static void for_others(const tape& t, F&& f) {
    for (index_t token = 0; token < t.is_offered.rows(); ++token)
      for (index_t e = 0; e < t.is_offered.cols(); ++e)
        if (!t.is_offered(token, e)) f(token, e);
  }
};

static_assert(DifferentiableGate<offered_gate<linear_gate<float>>>);

}  // namespace sluice::inline SLUICE_ISA
