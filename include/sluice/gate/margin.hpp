/// A gate that holds back experts which are ahead: while it is trained, one that got more than its share is closed.
///
///   p = softmax of the logits     G_e = sum over the training tokens so far of p_e     margin m >= 0
///   token after token:  logits[t,e] = -infinity where G_e - (mean of G) > m;  then G += softmax of what is left
///
/// So a token's weights are those of the open experts, divided by their sum; closed ones have weight and gradient
/// exactly 0, and G is a constant to gradients. No G is ever more than m + 1 above the mean, and one expert is always
/// open. At inference, and with a margin of infinity (the second phase of training, set_margin), the inner gate alone
/// scores. G goes on from call to call in a state, "ahead" [E], as its distances from the mean, which do not grow; it
/// moves by after_step, from the last training call of the tape.
///
/// Tokens are looked at in their order, one after the other: that is what is computed, and takes T E steps on one
/// thread. Padding and tokens with NaN among their logits are passed by. Not causal. Eigen, Ranzato, Sutskever 2014,
/// "Learning Factored Representations in a Deep Mixture of Experts", arXiv:1312.4314; the margin's size is not given
/// there.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/statistics.hpp>
#include <sluice/gate/decorator.hpp>
#include <sluice/kernel/softmax.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Inner>
class margin_gate : public gate_decorator<Inner> {
public:
  using scalar = typename Inner::scalar;
  static constexpr bool causal = false;
  struct tape : decorated_tape<Inner> {
    buffer<scalar> ahead;                ///< [E] after the last training call; empty: there was none
    matrix_buffer<std::uint8_t> closed;  ///< [T,E], of the last call; empty: none
    matrix_buffer<scalar> dlogits;       ///< of the inner gate
    buffer<scalar> shares;               ///< [E] scratch
  };

  /// Throws std::invalid_argument unless margin >= 0; infinity is no constraint.
  explicit margin_gate(Inner inner, scalar margin = 1)
      : gate_decorator<Inner>(std::move(inner)), ahead_({this->experts()}, parameter_role::state) {
    set_margin(margin);
  }

  void set_margin(scalar margin) {
    if (is_nan(margin) || margin < 0) throw_invalid("margin_gate needs a margin >= 0, not ", margin);
    margin_ = margin;
  }
  scalar margin() const noexcept { return margin_; }
  /// G - mean of G, [E]
  const parameter<scalar>& ahead() const noexcept { return ahead_; }

  void forward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_out<scalar> logits, tape& t) const {
    this->inner().forward(x, context, logits, t.inner);
    const index_t experts = this->experts();
    t.closed.clear();
    t.ahead.clear();
    t.ahead.reserve(experts);
    t.shares.reserve(experts);
    if (!context.training || margin_ > (std::numeric_limits<scalar>::max)()) return;
    t.shares.resize(experts);
    t.closed.set_zero(x.rows(), experts);
    t.ahead.assign(experts, scalar(0));
    std::copy_n(ahead_.data(), experts, t.ahead.begin());
    for (index_t token = 0; token < x.rows(); ++token) {
      scalar* row = logits.data() + token * logits.outerStride();
      if (context.is_padding(token) || any_nan(row, experts)) continue;
      for (index_t e = 0; e < experts; ++e)
        if (t.ahead[e] > margin_) {
          row[e] = -std::numeric_limits<scalar>::infinity();
          t.closed(token, e) = 1;
        }
      kernel::softmax(row, t.shares.begin(), experts);
      const scalar mean = scalar(1) / static_cast<scalar>(experts);
      for (index_t e = 0; e < experts; ++e) t.ahead[e] += t.shares[e] - mean;
    }
  }

  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_in<scalar> dlogits, tape& t,
                tokens_out<scalar> dx) {
    if (t.closed.empty()) return this->inner().backward(x, context, dlogits, t.inner, dx);
    t.dlogits.resize(dlogits.rows(), dlogits.cols());
    t.dlogits.map() = dlogits;
    for (index_t token = 0; token < dlogits.rows(); ++token)
      for (index_t e = 0; e < dlogits.cols(); ++e)
        if (t.closed(token, e) != 0) t.dlogits(token, e) = 0;
    this->inner().backward(x, context, t.dlogits.map(), t.inner, dx);
  }

  void after_step(const routing_statistics&, tape& t) {
    if (!t.ahead.empty()) std::copy(t.ahead.begin(), t.ahead.end(), ahead_.data());
    t.ahead.clear();
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    gate_decorator<Inner>::visit_parameters(self, visit);
    visit("ahead", self.ahead_);
  }

private:
  scalar margin_ = 1;
  parameter<scalar> ahead_;
};

}  // namespace sluice::inline SLUICE_ISA
