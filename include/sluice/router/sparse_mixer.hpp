/// SparseMixer router: experts are chosen one after another, each weighed by a softmax over its near rivals only.
///
///   L = X W^T [T,E].  Round r = 1 .. k, without the experts chosen before: m = the largest logit left,
///   survivors: (m - L[e]) / max(|L[e]|, m) <= 2 jitter;   p = softmax of L over the survivors;   weight = p[chosen]
///
///   inference   chosen = the largest
///   training    chosen = largest of L[e] + Gumbel over the survivors; its weight counts in full if it is the largest or a
///               uniform draw exceeds 3/4, else times 0.3333
///
/// Weights are not normalised over the choice; they sum to at most k. An expert without rivals has weight exactly 1.
/// Gradients: dL[i] += g p[chosen] (1[i = chosen] - p[i]) over the survivors of each round. At inference that is the exact
/// gradient; in training it is GRIN's estimate of the gradient through the choice, in which the factor of the forward pass
/// does not appear. The draws are those of random_site::selection_noise: for round r of token t, E for the choice and one
/// for the factor, from position (t k + r) (E + 1) on. Ties at inference: the lower expert; NaN counts as -infinity.
/// Liu et al. 2024 (GRIN), arXiv:2409.12136; Abdin et al. 2024 (Phi-3.5-MoE), arXiv:2404.14219; Liu et al. 2023,
/// arXiv:2310.00811.
#pragma once

#include <sluice/gate/linear.hpp>
#include <sluice/kernel/order.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/kernel/top_k.hpp>
#include <sluice/router/token_choice.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

/// The rule of SparseMixer routing, for one token.
template <std::floating_point Scalar>
class sparse_mixer_rule {
public:
  struct options {
    index_t top_k = 2;
    Scalar jitter = Scalar(0.01);
  };

  /// Throws std::invalid_argument unless 0 <= jitter.
  explicit sparse_mixer_rule(options o) : options_(o) {
    if (!detail::is_usable(o.jitter) || o.jitter < Scalar(0))
      throw_invalid("SparseMixer cannot mask with a jitter of ", o.jitter);
  }

  index_t top_k() const noexcept { return options_.top_k; }

  /// Scores, for losses: the softmax over all experts.
  void score(const Scalar* logits, index_t experts, Scalar* scores) const { kernel::softmax(logits, scores, experts); }

  index_t choose_drawn(const routing_context<Scalar>& context, index_t token, const Scalar* logits, const Scalar*,
                       Scalar* scratch, index_t experts, index_t k, index_t* ids) const {
    if (!context.training) {
      kernel::top_k(logits, experts, k, ids);
      return k;
    }
    for (index_t r = 0; r < k; ++r) {
      const index_t top = largest(logits, experts, ids, r);
      const index_t first_draw = (token * k + r) * (experts + 1);
      index_t best = no_expert;
      for (index_t e = 0; e < experts; ++e) {
        if (!survives(logits, ids, r, top, e)) continue;
        scratch[e] =
            logits[e] + static_cast<Scalar>(context.random.gumbel(random_site::selection_noise, first_draw + e));
        if (best == no_expert || order_key(scratch[e]) > order_key(scratch[best])) best = e;
      }
      ids[r] = best;
    }
    return k;
  }

  /// The weights of inference.
  void weigh(const Scalar* logits, const Scalar*, index_t experts, const index_t* ids, index_t count,
             Scalar* weights) const {
    for (index_t r = 0; r < count; ++r) {
      const index_t top = largest(logits, experts, ids, r);
      weights[r] = exponential(logits, top, ids[r]) / sum_of_exponentials(logits, experts, ids, r, top);
    }
  }

  /// The weights of training, some of them lessened by a draw.
  void weigh_drawn(const routing_context<Scalar>& context, index_t token, const Scalar* logits, const Scalar* scores,
                   index_t experts, const index_t* ids, index_t count, Scalar* weights) const {
    weigh(logits, scores, experts, ids, count, weights);
    if (!context.training) return;
    for (index_t r = 0; r < count; ++r) {
      const index_t position = (token * count + r) * (experts + 1) + experts;
      if (ids[r] != largest(logits, experts, ids, r) &&
          !(context.random.uniform(random_site::selection_noise, position) > 0.75))
        weights[r] *= Scalar(0.3333);
    }
  }

  void backward(const Scalar* logits, const Scalar*, index_t experts, const index_t* ids, index_t count, const Scalar*,
                const Scalar* dweights, Scalar* dlogits) const {
    for (index_t r = 0; r < count; ++r) {
      const index_t top = largest(logits, experts, ids, r);
      const Scalar sum = sum_of_exponentials(logits, experts, ids, r, top);
      const Scalar pull = dweights[r] * exponential(logits, top, ids[r]) / sum;
      dlogits[ids[r]] += pull;
      for (index_t e = 0; e < experts; ++e)
        if (survives(logits, ids, r, top, e)) dlogits[e] -= pull * exponential(logits, top, e) / sum;
    }
  }

  Scalar priority(const Scalar* scores, index_t experts) const { return scores[kernel::arg_max(scores, experts)]; }

private:
  static bool is_chosen(const index_t* ids, index_t count, index_t e) {
    for (index_t j = 0; j < count; ++j)
      if (ids[j] == e) return true;
    return false;
  }

  /// The expert with the largest logit that is none of the first `chosen` ids.
  static index_t largest(const Scalar* logits, index_t experts, const index_t* ids, index_t chosen) {
    index_t best = no_expert;
    for (index_t e = 0; e < experts; ++e)
      if (!is_chosen(ids, chosen, e) && (best == no_expert || order_key(logits[e]) > order_key(logits[best]))) best = e;
    return best;
  }

  bool survives(const Scalar* logits, const index_t* ids, index_t chosen, index_t top, index_t e) const {
    if (e == top) return true;
    if (is_chosen(ids, chosen, e)) return false;
    const Scalar m = logits[top];
    const Scalar size = (std::abs)(logits[e]);
    const Scalar scale = size > m ? size : m;
    return !(scale > Scalar(0)) || !((m - logits[e]) / scale > 2 * options_.jitter);  // both are 0: no difference
  }

  /// exp(L[e] - m), 1 for the largest even where it is infinite.
  static Scalar exponential(const Scalar* logits, index_t top, index_t e) {
    return order_key(logits[e]) == order_key(logits[top]) ? Scalar(1) : std::exp(logits[e] - logits[top]);
  }

  Scalar sum_of_exponentials(const Scalar* logits, index_t experts, const index_t* ids, index_t chosen,
                             index_t top) const {
    Scalar sum = 0;
    for (index_t e = 0; e < experts; ++e)
      if (survives(logits, ids, chosen, top, e)) sum += exponential(logits, top, e);
    return sum;
  }

  options options_;
};

/// sluice::sparse_mixer_router<float> router{4096, 16, {.top_k = 2, .jitter = 0.01f}};
template <std::floating_point Scalar, DifferentiableGate GateType = linear_gate<Scalar>>
class sparse_mixer_router : public token_choice_router<GateType, sparse_mixer_rule<Scalar>> {
  using base = token_choice_router<GateType, sparse_mixer_rule<Scalar>>;

public:
  using options = typename sparse_mixer_rule<Scalar>::options;
  static constexpr bool exact_gradient = false;  ///< in training, by design; at inference it is

  explicit sparse_mixer_router(index_t inputs, index_t experts,
                               options o = {}) requires std::constructible_from<GateType, index_t, index_t>
      : base(GateType(inputs, experts), sparse_mixer_rule<Scalar>(o)) {}
  explicit sparse_mixer_router(GateType gate, options o = {}) : base(std::move(gate), sparse_mixer_rule<Scalar>(o)) {}
};

static_assert(explain_choice_rule<sparse_mixer_rule<float>, float>());
static_assert(DifferentiableRouter<sparse_mixer_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
