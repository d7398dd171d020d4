/// Dense-to-sparse router (EvoMoE): a tempered softmax under Gumbel noise that activates nearly every expert at first,
/// and one in the end.
///
///   L = gate(x) [T,E]   zeta [T,E] Gumbel   p = softmax(L[t])   q = softmax((L[t] + zeta[t]) / tau)
///   training               S = {e : q[e] > theta}     from step `hard_from` on: the arg max of q alone
///   inference              S = the arg max of p       no noise, no tau
///   weights over S         p[e], or q[e] in training with gumbel_weights;  not renormalised
///
/// tau cools over the steps of the context. A call that names a k takes at most the k largest q. At first a plan has up
/// to T E assignments, for which room is made. As q sums to 1 and theta < 1/E, S is never empty.
/// Gradients, to L of p and to L + zeta of q, which is L too, S a constant:
///   dl[j] = p[j] (g[j] 1[j in S] - sum over S of p g)            q the same times 1/tau
/// Equal q: the lower expert; NaN counts as -infinity; T = 0 gives an empty plan (router/token_choice.hpp). loss/
/// chosen_balance.hpp is the balance loss that goes with it. The release has a capacity at evaluation only,
/// ceil(0.25 T) an expert: dense_to_sparse_router<float, linear_gate<float>, position_capacity> with
/// evaluation_capacity(0.25). Its form for tau <= 0, a dense softmax, is dense_softmax_router.
/// Nie et al. 2021, "EvoMoE: An Evolutional Mixture-of-Experts Training Framework via Dense-To-Sparse Gate",
/// arXiv:2112.14397, and its released code.
#pragma once

#include <sluice/capacity/position.hpp>
#include <sluice/gate/linear.hpp>
#include <sluice/kernel/order.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/kernel/top_k.hpp>
#include <sluice/router/over_training/temperature_schedule.hpp>
#include <sluice/router/token_choice.hpp>

#include <limits>

namespace sluice::inline SLUICE_ISA {

/// The rule of dense-to-sparse routing, for one token.
template <FloatOrDouble Scalar>
class dense_to_sparse_rule {
public:
  struct options {
    temperature_schedule temperature{};
    Scalar threshold = Scalar(1e-3);                            ///< theta
    index_t hard_from = (std::numeric_limits<index_t>::max)();  ///< the training step from which one expert is chosen
    bool gumbel_weights = false;                                ///< weights are q, not p
  };

  /// Throws std::invalid_argument unless E >= 1, 0 <= theta < 1/E and the temperature cools.
  dense_to_sparse_rule(index_t experts, options o) : options_(o), experts_(experts) {
    o.temperature.validate();
    if (experts < 1 || !detail::is_usable(o.threshold) || o.threshold < Scalar(0) ||
        !(o.threshold * static_cast<Scalar>(experts) < Scalar(1)))
      throw_invalid("dense-to-sparse routing needs E >= 1 and 0 <= threshold < 1/E, not E = ", experts,
                    " and a threshold of ", o.threshold);
  }

  index_t top_k() const noexcept { return 1; }
  index_t top_k(const routing_context<Scalar>& context) const noexcept { return is_soft(context) ? experts_ : 1; }
  void validate(index_t experts) const {
    if (experts != experts_)
      throw_invalid("the dense-to-sparse rule is for ", experts_, " experts, the router has E = ", experts);
  }

  /// q in training, p at inference.
  void score(const choice_row<Scalar>& row, Scalar* scores) const {
    const Scalar tau = temperature(row);
    for (index_t e = 0; e < row.experts; ++e) scores[e] = row.logits[e] / tau;
    kernel::softmax(scores, scores, row.experts);
  }

  index_t choose(const choice_row<Scalar>& row, index_t* ids) const {
    kernel::top_k(row.scores, row.experts, row.k, ids);
    if (!is_soft(row.context)) return row.k;
    index_t count = 1;  // the largest is above theta, up to rounding
    while (count < row.k && row.scores[ids[count]] > options_.threshold) ++count;
    return count;
  }

  void weigh(const choice_row<Scalar>& row, std::span<const index_t> ids, Scalar* weights) const {
    const Scalar* p = probabilities(row);
    for (std::size_t j = 0; j < ids.size(); ++j) weights[j] = p[ids[j]];
  }

  void backward(const choice_row<Scalar>& row, const weighed_experts<Scalar>& weighed, Scalar* dlogits) const {
    const Scalar* p = probabilities(row);
    const Scalar factor = p == row.scores ? 1 / temperature(row) : Scalar(1);
    Scalar inner = 0;
    for (std::size_t j = 0; j < weighed.ids.size(); ++j) {
      const Scalar part = p[weighed.ids[j]] * weighed.dweights[j];
      dlogits[weighed.ids[j]] += factor * part;
      inner += part;
    }
    for (index_t e = 0; e < row.experts; ++e) dlogits[e] -= factor * p[e] * inner;
  }

  const options& settings() const noexcept { return options_; }

private:
  bool is_soft(const routing_context<Scalar>& context) const noexcept {
    return context.training && options_.hard_from > context.step;
  }
  Scalar temperature(const choice_row<Scalar>& row) const noexcept {
    return row.context.training ? static_cast<Scalar>(options_.temperature(row.context.step)) : Scalar(1);
  }

  /// What weights are made of: the scores, or the softmax of the clean logits.
  const Scalar* probabilities(const choice_row<Scalar>& row) const {
    if (options_.gumbel_weights || !row.context.training) return row.scores;
    kernel::softmax(row.clean, row.scratch, row.experts);
    return row.scratch;
  }

  options options_;
  index_t experts_;
};

/// Room for everybody in training, and for this fraction of a group's tokens, rounded up, at evaluation. Throws
/// std::invalid_argument unless 0 < fraction <= 1.
inline position_capacity evaluation_capacity(double fraction = 0.25) {
  if (!is_above(fraction, 0) || fraction > 1) throw_invalid("an expert cannot take ", fraction, " of the tokens");
  return position_capacity(capacity_limit::token_fraction({1.0, fraction}));
}

/// sluice::dense_to_sparse_router<float> router{64, 8, {.temperature = {2.0, 0.3, 10000}, .hard_from = 10000}};
template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>, typename Capacity = dropless>
class dense_to_sparse_router
    : public token_choice_router<GateType, dense_to_sparse_rule<Scalar>, gumbel_noise<Scalar>, Capacity> {
  using base = token_choice_router<GateType, dense_to_sparse_rule<Scalar>, gumbel_noise<Scalar>, Capacity>;

public:
  using options = typename dense_to_sparse_rule<Scalar>::options;

  /// A linear gate without bias.
  explicit dense_to_sparse_router(index_t inputs, index_t experts, options o = {}, Capacity capacity = {})
    requires std::constructible_from<GateType, index_t, index_t>
      : dense_to_sparse_router(GateType(inputs, experts), o, std::move(capacity)) {}
  explicit dense_to_sparse_router(GateType gate, options o = {}, Capacity capacity = {})
      : dense_to_sparse_router(gate.experts(), std::move(gate), o, std::move(capacity)) {}

private:
  dense_to_sparse_router(index_t experts, GateType&& gate, options o, Capacity&& capacity)
      : base(std::move(gate), dense_to_sparse_rule<Scalar>(experts, o), {}, std::move(capacity)) {}
};

static_assert(explain_choice_rule<dense_to_sparse_rule<float>, float>());
static_assert(DifferentiableRouter<dense_to_sparse_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
