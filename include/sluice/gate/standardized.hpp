/// Standardized gate: each token's logits are scaled to one standard deviation over the experts. The mean stays.
///
///   logits = G s / sigma      G = gate(x), s the target, sigma[t] the unbiased standard deviation of G[t] over E
///   dG[j] = s/sigma (g[j] - (G[j] - mean G) <g, G> / ((E - 1) sigma^2))
///
/// A row of equal logits has no deviation and is left as it is, gradient included. E = 1 is refused. NaN stays in its
/// row. The router's `signals` hold the scaled logits; those before are in the tape. MoE++ scales inside its selection
/// instead, so that the logits it hands to the next layer are not scaled (router/moe_plus_plus.hpp).
/// Jin et al. 2024 (MoE++), arXiv:2410.07348, released code.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/gate/decorator.hpp>
#include <sluice/gate/linear.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Scalar>
struct row_spread {
  Scalar mean;
  Scalar deviation;  ///< unbiased
};

template <typename Scalar>
row_spread<Scalar> spread_of(const Scalar* row, index_t count) noexcept {
  Scalar mean = 0;
  for (index_t e = 0; e < count; ++e) mean += row[e];
  mean /= static_cast<Scalar>(count);
  Scalar squares = 0;
  for (index_t e = 0; e < count; ++e) squares += (row[e] - mean) * (row[e] - mean);
  return {mean, std::sqrt(squares / static_cast<Scalar>(count - 1))};
}

/// What a row is multiplied by to have deviation `target`.
template <typename Scalar>
Scalar standardizing_factor(const row_spread<Scalar>& spread, Scalar target) noexcept {
  return spread.deviation == Scalar(0) ? Scalar(1) : target / spread.deviation;
}

/// What every dG[j] gets for the dependence of sigma on the row: minus this times (G[j] - mean), given inner = <g, G>.
template <typename Scalar>
Scalar spread_pull(const row_spread<Scalar>& spread, Scalar target, Scalar inner, index_t count) noexcept {
  if (spread.deviation == Scalar(0)) return 0;
  return target / spread.deviation * inner / (static_cast<Scalar>(count - 1) * spread.deviation * spread.deviation);
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
    if (!(target > 0)) throw_invalid("standardized_gate needs a deviation > 0, not ", target);
  }
  standardized_gate(index_t inputs, index_t experts, scalar target = 1)
    requires std::constructible_from<Inner, index_t, index_t>
      : standardized_gate(Inner(inputs, experts), target) {}

  void forward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_out<scalar> logits, tape& t) const {
    t.logits.resize(x.rows(), this->experts());
    this->inner().forward(x, context, t.logits.map(), t.inner);
    context.executor.parallel_blocks(x.rows(), row_block, 4 * this->experts(), [&](index_t begin, index_t end) {
      for (index_t r = begin; r < end; ++r) {
        const scalar factor =
            detail::standardizing_factor(detail::spread_of(t.logits.row(r), this->experts()), target_);
        for (index_t e = 0; e < this->experts(); ++e) logits(r, e) = t.logits(r, e) * factor;
      }
    });
  }

  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_in<scalar> dlogits, tape& t,
                tokens_out<scalar> dx) {
    t.dlogits.resize(x.rows(), this->experts());
    context.executor.parallel_blocks(x.rows(), row_block, 4 * this->experts(), [&](index_t begin, index_t end) {
      for (index_t r = begin; r < end; ++r) {
        const scalar* row = t.logits.row(r);
        const auto spread = detail::spread_of(row, this->experts());
        const scalar factor = detail::standardizing_factor(spread, target_);
        scalar inner = 0;
        for (index_t e = 0; e < this->experts(); ++e) inner += dlogits(r, e) * row[e];
        const scalar pull = detail::spread_pull(spread, target_, inner, this->experts());
        for (index_t e = 0; e < this->experts(); ++e)
          t.dlogits(r, e) = factor * dlogits(r, e) - pull * (row[e] - spread.mean);
      }
    });
    this->inner().backward(x, context, t.dlogits.map(), t.inner, dx);
  }

private:
  static constexpr index_t row_block = 32;

  scalar target_;
};

static_assert(DifferentiableGate<standardized_gate<linear_gate<float>>>);

}  // namespace sluice::inline SLUICE_ISA
