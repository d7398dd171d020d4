/// Batch-normalised gate: each expert's logits get mean 0 and deviation 1 over the tokens of a training batch.
///
///   training   logits = (G - m) s,  s = 1 / sqrt(v + epsilon)  m, v [E] mean and population variance over the n tokens
///              dG = s (g - mean g - logits mean(g logits)), means over the tokens
///   inference  the same with running m and v, which are constants: dG = s g
///   after a step  running += momentum (batch - running), with the unbiased variance v n / (n - 1)
///
/// States: mean [E], initially 0, and variance [E], initially 1; saved, never learned by gradients. No expert can be
/// loud for all tokens, so all are used. In training a token's logits depend on its batch: not causal, though inference
/// is. Padding, tokens with NaN and those whose logits are not finite have no part in m and v; fewer than two tokens
/// leave the running ones as they are. Sums over tokens go in order: equal bits for every thread count. T = 0 is fine.
/// Ioffe and Szegedy 2015, arXiv:1502.03167; in front of experts Oldfield et al. 2024 (muMoE), arXiv:2402.12550.
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/gate/decorator.hpp>
#include <sluice/gate/linear.hpp>

#include <cmath>
#include <cstdint>

namespace sluice::inline SLUICE_ISA {

template <typename Inner>
class batch_normalized_gate : public gate_decorator<Inner> {
public:
  using scalar = typename Inner::scalar;
  static constexpr bool causal = false;
  struct options {
    double epsilon = 1e-5;
    double momentum = 0.1;
  };
  struct tape : decorated_tape<Inner> {
    matrix_buffer<scalar> logits;  ///< [T,E] that were handed out
    buffer<scalar> mean, variance, scale;
    buffer<std::uint8_t> counts;  ///< [T] has a part in the batch's numbers
    index_t counted = 0;
    bool is_batch = false;  ///< whether the last call took them from the batch
    matrix_buffer<scalar> dlogits;
    buffer<scalar> dmean, dinner;
  };

  /// Throws std::invalid_argument unless epsilon > 0 and 0 <= momentum <= 1.
  explicit batch_normalized_gate(Inner inner, options o = {}) : gate_decorator<Inner>(std::move(inner)), options_(o) {
    if (!is_above(o.epsilon, 0)) throw_invalid("batch_normalized_gate needs epsilon > 0, not ", o.epsilon);
    if (!(o.momentum >= 0 && o.momentum <= 1))
      throw_invalid("batch_normalized_gate needs 0 <= momentum <= 1, not ", o.momentum);
    mean_ = {{this->experts()}, parameter_role::state};
    variance_ = {{this->experts()}, parameter_role::state, initial_values::constant(1)};
  }
  batch_normalized_gate(index_t inputs, index_t experts) requires std::constructible_from<Inner, index_t, index_t>
      : batch_normalized_gate(Inner(inputs, experts)) {}

  void forward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_out<scalar> logits, tape& t) const {
    this->inner().forward(x, context, logits, t.inner);
    const index_t tokens = x.rows();
    t.is_batch = context.training;
    t.counts.resize(tokens);
    t.counted = 0;
    for (index_t r = 0; r < tokens; ++r)
      t.counted += t.counts[r] = !context.is_padding(r) && all_finite(&logits(r, 0), this->experts());
    for (auto* numbers : {&t.mean, &t.variance, &t.scale}) numbers->resize(this->experts());
    if (t.is_batch)
      take_moments(logits, t, context.executor);
    else
      for (index_t e = 0; e < this->experts(); ++e) t.mean[e] = mean_.data()[e], t.variance[e] = variance_.data()[e];
    for (index_t e = 0; e < this->experts(); ++e)
      t.scale[e] = 1 / std::sqrt(t.variance[e] + static_cast<scalar>(options_.epsilon));
    t.logits.resize(tokens, this->experts());
    context.executor.parallel_each(tokens, 4 * this->experts(), [&](index_t r) {
      for (index_t e = 0; e < this->experts(); ++e)
        t.logits(r, e) = logits(r, e) = (logits(r, e) - t.mean[e]) * t.scale[e];
    });
  }

  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_in<scalar> dlogits, tape& t,
                tokens_out<scalar> dx) {
    for (auto* sums : {&t.dmean, &t.dinner}) sums->assign(this->experts(), scalar(0));
    if (t.is_batch && t.counted > 0) {
      const auto share = 1 / static_cast<scalar>(t.counted);
      for_columns(t, context.executor, [&](index_t r, index_t e) {
        t.dmean[e] += share * dlogits(r, e);
        t.dinner[e] += share * dlogits(r, e) * t.logits(r, e);
      });
    }
    t.dlogits.resize(x.rows(), this->experts());
    context.executor.parallel_each(x.rows(), 4 * this->experts(), [&](index_t r) {
      for (index_t e = 0; e < this->experts(); ++e)
        t.dlogits(r, e) = t.counts[r] ? t.scale[e] * (dlogits(r, e) - t.dmean[e] - t.logits(r, e) * t.dinner[e])
                                      : t.scale[e] * dlogits(r, e);
    });
    this->inner().backward(x, context, t.dlogits.map(), t.inner, dx);
  }

  void after_step(const routing_statistics& statistics, tape& t) {
    if constexpr (requires { this->inner().after_step(statistics, t.inner); })
      this->inner().after_step(statistics, t.inner);
    if (!t.is_batch || t.counted < 2) return;
    const auto momentum = static_cast<scalar>(options_.momentum);
    const auto unbiased = static_cast<scalar>(t.counted) / static_cast<scalar>(t.counted - 1);
    for (index_t e = 0; e < this->experts(); ++e) {
      mean_.data()[e] += momentum * (t.mean[e] - mean_.data()[e]);
      variance_.data()[e] += momentum * (unbiased * t.variance[e] - variance_.data()[e]);
    }
  }

  parameter<scalar>& mean() noexcept { return mean_; }
  parameter<scalar>& variance() noexcept { return variance_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    gate_decorator<Inner>::visit_parameters(self, visit);
    visit("mean", self.mean_);
    visit("variance", self.variance_);
  }

private:
  static constexpr index_t column_block = 16;

  /// The mean first: squares of distances to it lose no digits.
  void take_moments(tokens_in<scalar> logits, tape& t, const executor_ref& executor) const {
    t.mean.fill(scalar(0));
    t.variance.fill(scalar(0));
    if (t.counted == 0) return;
    const auto share = 1 / static_cast<scalar>(t.counted);
    for_columns(t, executor, [&](index_t r, index_t e) { t.mean[e] += share * logits(r, e); });
    for_columns(t, executor, [&](index_t r, index_t e) {
      t.variance[e] += share * (logits(r, e) - t.mean[e]) * (logits(r, e) - t.mean[e]);
    });
  }

  /// f(token, expert) for the tokens that count, in order; a task owns experts.
  template <typename F>
  void for_columns(const tape& t, const executor_ref& executor, F&& f) const {
    executor.parallel_blocks(this->experts(), column_block, t.counts.size(), [&](index_t begin, index_t end) {
      for (index_t r = 0; r < t.counts.size(); ++r)
        for (index_t e = begin; t.counts[r] && e < end; ++e) f(r, e);
    });
  }

  options options_;
  parameter<scalar> mean_, variance_;
};

static_assert(DifferentiableGate<batch_normalized_gate<linear_gate<float>>>);

}  // namespace sluice::inline SLUICE_ISA
