/// Standardized gate: each token's logits are scaled to one standard deviation over the experts. The mean stays.
///
///   logits = G s / sigma      G = gate(x), s the target, sigma[t] the unbiased standard deviation of G[t] over E
///   dG[j] = s/sigma (g[j] - (G[j] - mean G) <g, G> / ((E - 1) sigma^2))
///
/// A row of equal logits has no deviation and is left as it is, gradient included; so is one with an infinity, or whose
/// squares are infinite. E = 1 is refused. NaN stays in its row. The router's `signals` hold the scaled logits; those
/// before are in the tape. MoE++ scales inside its selection instead, so that the logits it hands to the next layer are
/// not scaled (router/tokens_choose/moe_plus_plus.hpp). Jin et al. 2024 (MoE++), arXiv:2410.07348, released code.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/gate/decorator.hpp>
#include <sluice/gate/linear.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Scalar>
struct row_spread {
  Scalar mean = 0;
  Scalar deviation = 0;  ///< unbiased; 0 where there is nothing that a row could be divided by
};

template <typename Scalar>
row_spread<Scalar> spread_of(const Scalar* row, index_t count) noexcept {
  Scalar mean = 0;
  for (index_t e = 0; e < count; ++e) mean += row[e];
  mean /= static_cast<Scalar>(count);
  Scalar squares = 0;
  for (index_t e = 0; e < count; ++e) squares += (row[e] - mean) * (row[e] - mean);
  const Scalar deviation = std::sqrt(squares / static_cast<Scalar>(count - 1));
  const auto key = order_key(deviation);
  if (!(key > 0 && key < infinity_bits<Scalar>)) return {};
  return {mean, deviation};
}

/// What a row is multiplied by to have deviation `target`.
template <typename Scalar>
Scalar standardizing_factor(const row_spread<Scalar>& spread, Scalar target) noexcept {
  return spread.deviation == Scalar(0) ? Scalar(1) : target / spread.deviation;
}

/// Takes from every dG[j] what is due to the dependence of sigma on the row, given inner = <g, G>. One division by
/// sigma at a time: where it is small, its square has lost its digits.
template <typename Scalar>
void subtract_spread_pull(const Scalar* row, index_t count, const row_spread<Scalar>& spread, Scalar target,
                          Scalar inner, Scalar* drow) noexcept {
  if (spread.deviation == Scalar(0)) return;
  const Scalar pull = target / spread.deviation * (inner / spread.deviation) / static_cast<Scalar>(count - 1);
  for (index_t e = 0; e < count; ++e) drow[e] -= pull * ((row[e] - spread.mean) / spread.deviation);
}

}  // namespace detail

template <typename Inner>
class standardized_gate : public gate_decorator<Inner> {
public:
  using scalar = typename Inner::scalar;
  struct tape : decorated_tape<Inner> {
    matrix_buffer<scalar> logits;   ///< [T,E] of the inner gate
    matrix_buffer<scalar> dlogits;  ///< of the inner gate
  };

  /// Throws std::invalid_argument if E < 2 or the target is not positive.
  explicit standardized_gate(Inner inner, scalar target = 1)
      : gate_decorator<Inner>(std::move(inner)), target_(target) {
    if (this->experts() < 2) throw_invalid("standardized_gate needs E >= 2: one number has no deviation");
    if (!is_above(target, 0)) throw_invalid("standardized_gate needs a deviation > 0, not ", target);
  }
  standardized_gate(index_t inputs, index_t experts, scalar target = 1)
    requires std::constructible_from<Inner, index_t, index_t>
      : standardized_gate(Inner(inputs, experts), target) {}

  void forward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_out<scalar> logits, tape& t) const {
    t.logits.resize(x.rows(), this->experts());
    this->inner().forward(x, context, t.logits.map(), t.inner);
    context.executor.parallel_each(x.rows(), 4 * this->experts(), [&](index_t r) {
      const scalar factor = detail::standardizing_factor(detail::spread_of(t.logits.row(r), this->experts()), target_);
      for (index_t e = 0; e < this->experts(); ++e) logits(r, e) = t.logits(r, e) * factor;
    });
  }

  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_in<scalar> dlogits, tape& t,
                tokens_out<scalar> dx) {
    t.dlogits.resize(x.rows(), this->experts());
    context.executor.parallel_each(x.rows(), 4 * this->experts(), [&](index_t r) {
      const scalar* row = t.logits.row(r);
      const auto spread = detail::spread_of(row, this->experts());
      const scalar factor = detail::standardizing_factor(spread, target_);
      scalar inner = 0;
      for (index_t e = 0; e < this->experts(); ++e) inner += dlogits(r, e) * row[e];
      for (index_t e = 0; e < this->experts(); ++e) t.dlogits(r, e) = factor * dlogits(r, e);
      detail::subtract_spread_pull(row, this->experts(), spread, target_, inner, t.dlogits.row(r));
    });
    this->inner().backward(x, context, t.dlogits.map(), t.inner, dx);
  }

private:
  scalar target_;
};

static_assert(DifferentiableGate<standardized_gate<linear_gate<float>>>);

}  // namespace sluice::inline SLUICE_ISA
