/// Dense-to-sparse router with one k for the batch: as many experts a token as a token activates on average.
///
///   L = gate(x) [T,E]   zeta [T,E] Gumbel   q = softmax((L[t] + zeta[t]) / tau)
///   training    k' = max(k, floor(mean over the tokens of a group of the number of experts with q > theta))
///               S = the k' largest of q, weights q over S, not renormalised
///   inference   S = the k largest of L, weights softmax over S
///
/// The form of the dense-to-sparse gate in the code of SMoE-Dropout, whose gate has a bias; that of EvoMoE, for which
/// every token has a number of its own, is dense_to_sparse.hpp. In training not causal: k' depends on all tokens.
/// Gradients, S and k' constants:  training  dl[j] = q[j] / tau (g[j] 1[j in S] - sum over S of q g);  inference as
/// top_k_router's post form, which for k = 1 has none. A training call that names a k takes min(k', that k). Padding
/// and tokens with NaN do not count. Equal q: the lower expert. T = 0 gives an empty plan. Chen et al. 2023, "Sparse
/// MoE as the New Dropout", arXiv:2303.01610, released code.
#pragma once

#include <sluice/gate/linear.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/kernel/top_k.hpp>
#include <sluice/router/over_training/temperature_schedule.hpp>
#include <sluice/router/token_choice.hpp>

namespace sluice::inline SLUICE_ISA {

/// The rule of routing by the mean number of active experts.
template <FloatOrDouble Scalar>
class mean_active_rule {
public:
  struct tape {
    buffer<index_t> active;  ///< of each routable token
  };
  struct options {
    index_t top_k = 1;  ///< k: experts a token at inference, and the least in training
    temperature_schedule temperature{};
    Scalar threshold = Scalar(1e-3);  ///< theta
  };

  /// Throws std::invalid_argument unless theta >= 0 and the temperature cools.
  mean_active_rule(index_t experts, options o) : options_(o), experts_(experts) {
    o.temperature.validate();
    if (!detail::is_usable(o.threshold) || o.threshold < Scalar(0))
      throw_invalid("the threshold of active experts cannot be ", o.threshold);
  }

  index_t top_k() const noexcept { return options_.top_k; }
  /// Room for the largest k' that there can be.
  index_t top_k(const routing_context<Scalar>& context) const noexcept {
    return context.training ? experts_ : options_.top_k;
  }
  void validate(index_t experts) const {
    if (experts != experts_)
      throw_invalid("the rule of active experts is for ", experts_, " experts, the router has E = ", experts);
  }
  bool assigns(const routing_context<Scalar>& context) const noexcept { return context.training; }

  /// q in training, softmax(L) at inference.
  void score(const choice_row<Scalar>& row, Scalar* scores) const {
    const Scalar tau = row.context.training ? temperature(row.context) : Scalar(1);
    for (index_t e = 0; e < row.experts; ++e) scores[e] = row.logits[e] / tau;
    kernel::softmax(scores, scores, row.experts);
  }

  index_t choose(const choice_row<Scalar>& row, index_t* ids) const {
    kernel::top_k(row.logits, row.experts, row.k, ids);
    return row.k;
  }

  void reserve(const choice_call<Scalar>& call, tape& t) const { t.active.reserve(call.tokens); }
  void assign(const choice_batch<Scalar>& batch, choice_table<Scalar>& choices, tape& t) const {
    const auto count = static_cast<index_t>(batch.routable.size());
    t.active.resize(count);
    for_tokens(batch, [&](index_t i, index_t token) {
      const Scalar* q = batch.scores.row(token);
      index_t active = 0;
      for (index_t e = 0; e < batch.experts; ++e) active += q[e] > options_.threshold;
      t.active[i] = active;
    });
    index_t all = 0;
    for (const index_t active : t.active) all += active;
    const index_t k = (std::min)(batch.k, (std::max)(options_.top_k, all / count));
    for_tokens(batch, [&](index_t, index_t token) {
      kernel::top_k(batch.scores.row(token), batch.experts, k, choices.ids(token));
    });
  }

  void weigh(const choice_row<Scalar>& row, std::span<const index_t> ids, Scalar* weights) const {
    for (std::size_t j = 0; j < ids.size(); ++j)
      weights[j] = row.context.training ? row.scores[ids[j]] : row.logits[ids[j]];
    if (!row.context.training) kernel::softmax(weights, weights, static_cast<index_t>(ids.size()));
  }

  void backward(const choice_row<Scalar>& row, const weighed_experts<Scalar>& weighed, Scalar* dlogits) const {
    const auto& [ids, weights, dweights] = weighed;
    const Scalar factor = row.context.training ? 1 / temperature(row.context) : Scalar(1);
    Scalar inner = 0;
    for (std::size_t j = 0; j < ids.size(); ++j) {
      dlogits[ids[j]] += factor * weights[j] * dweights[j];
      inner += factor * weights[j] * dweights[j];
    }
    if (row.context.training)
      for (index_t e = 0; e < row.experts; ++e) dlogits[e] -= row.scores[e] * inner;
    else
      for (std::size_t j = 0; j < ids.size(); ++j) dlogits[ids[j]] -= weights[j] * inner;
  }

private:
  Scalar temperature(const routing_context<Scalar>& context) const noexcept {
    return static_cast<Scalar>(options_.temperature(context.step));
  }

  template <typename F>
  static void for_tokens(const choice_batch<Scalar>& batch, F&& f) {
    const auto count = static_cast<index_t>(batch.routable.size());
    batch.context.executor.parallel_each(count, 16 * batch.experts,
                                         [&](index_t i) { f(i, batch.routable[as_size(i)]); });
  }

  options options_;
  index_t experts_;
};

/// sluice::mean_active_router<float> router{64, 8, {.top_k = 2, .temperature = {2.0, 0.3, 10000}}};
template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>>
class mean_active_router : public token_choice_router<GateType, mean_active_rule<Scalar>, gumbel_noise<Scalar>> {
  using base = token_choice_router<GateType, mean_active_rule<Scalar>, gumbel_noise<Scalar>>;

public:
  using options = typename mean_active_rule<Scalar>::options;

  /// A linear gate without bias.
  explicit mean_active_router(index_t inputs, index_t experts, options o = {})
    requires std::constructible_from<GateType, index_t, index_t>
      : mean_active_router(GateType(inputs, experts), o) {}
  explicit mean_active_router(GateType gate, options o = {}) : mean_active_router(gate.experts(), std::move(gate), o) {}

private:
  mean_active_router(index_t experts, GateType&& gate, options o)
      : base(std::move(gate), mean_active_rule<Scalar>(experts, o)) {}
};

static_assert(explain_choice_rule<mean_active_rule<float>, float>());
static_assert(DifferentiableRouter<mean_active_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
