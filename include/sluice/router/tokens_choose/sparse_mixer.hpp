/// SparseMixer router: experts are chosen one after another, each weighed by a softmax over its near rivals only.
///
///   L = X W^T [T,E].  Round r = 1 .. k, without the experts chosen before: m = the largest logit left,
///   survivors: (m - L[e]) / max(|L[e]|, m) <= 2 jitter;   p = softmax of L over the survivors;   weight = p[chosen]
///
///   inference   chosen = the largest
///   training    chosen = largest of L[e] + Gumbel over the survivors; its weight counts in full if it is the largest
///               or a uniform draw exceeds `full`, else times `lessened`
///
///   version   full   lessened   gradient   what is estimated, F(m) the loss where the chosen weight is m, J = dp/dL
///   one       1/2    1/2        doubled    d/dL of sum over e of p[e] F[e](p[e]): choice and weight      Liu 2023
///   two       3/4    0.3333     as it is   sum over e of F[e] J[e]: the choice alone                     GRIN
///
/// Every round looks for its rivals among all E logits again. Weights are not normalised over the choice; they sum to
/// at most k. An expert without rivals has weight exactly 1. Gradients: dL[i] += g p[chosen] (1[i = chosen] - p[i])
/// over the survivors of each turn. At inference that is the exact gradient; in training, doubled in version one, the
/// estimate above, in which `lessened` does not appear. Were the largest not always counted in full, it would be exact
/// for quadratic F (one), cubic F (two). Version one is top-1 and has a learned vector omega [D] on the output, which
/// is output_normalized_layer with gain_only (kernel/row_norm.hpp); its balance loss is switch_balance with
/// loss_probability::near_rivals. The draws are those at sparse_mixer_rule::site: for round r of token t, E for the
/// choice and one for the factor, from position (t k + r) (E + 1) on. Ties at inference: the lower expert; NaN counts
/// as -infinity. Liu et al. 2024 (GRIN), arXiv:2409.12136; Abdin et al. 2024 (Phi-3.5-MoE), arXiv:2404.14219; Liu et
/// al. 2023, arXiv:2310.00811.
#pragma once

#include <sluice/gate/linear.hpp>
#include <sluice/kernel/near_rivals.hpp>
#include <sluice/kernel/order.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/kernel/top_k.hpp>
#include <sluice/router/token_choice.hpp>

#include <algorithm>
#include <cmath>

namespace sluice::inline SLUICE_ISA {

enum class sparse_mixer_version { one, two };

/// The rule of SparseMixer routing, for one token.
template <FloatOrDouble Scalar>
class sparse_mixer_rule {
public:
  static constexpr random_site site{"sparse_mixer.round"};
  static constexpr bool exact_gradient = false;  ///< in training, by design; at inference it is

  struct options {
    index_t top_k = 2;
    Scalar jitter = Scalar(0.01);  ///< version one: 0.1
    sparse_mixer_version version = sparse_mixer_version::two;
  };

  /// Throws std::invalid_argument unless 0 <= jitter.
  explicit sparse_mixer_rule(options o) : options_(o) {
    if (!detail::is_usable(o.jitter) || o.jitter < Scalar(0))
      throw_invalid("SparseMixer cannot mask with a jitter of ", o.jitter);
  }

  index_t top_k() const noexcept { return options_.top_k; }

  /// For capacity policies: the softmax over all experts.
  void score(const choice_row<Scalar>& row, Scalar* scores) const { kernel::softmax(row.logits, scores, row.experts); }

  index_t choose(const choice_row<Scalar>& row, index_t* ids) const {
    if (!row.context.training) {
      kernel::top_k(row.logits, row.experts, row.k, ids);
      return row.k;
    }
    for (index_t r = 0; r < row.k; ++r) {
      const rivals turn(row, ids_before(ids, r), options_.jitter);
      index_t best = no_expert;
      for (index_t e = 0; e < row.experts; ++e) {
        if (!turn.include(e)) continue;
        const double draw = row.context.random.gumbel(site, first_draw(row, r) + e);
        row.scratch[e] = row.logits[e] + static_cast<Scalar>(draw);
        if (best == no_expert || order_key(row.scratch[e]) > order_key(row.scratch[best])) best = e;
      }
      ids[r] = best;
    }
    return row.k;
  }

  void weigh(const choice_row<Scalar>& row, std::span<const index_t> ids, Scalar* weights) const {
    for (std::size_t r = 0; r < ids.size(); ++r) {
      const rivals turn(row, ids.first(r), options_.jitter);
      weights[r] = turn.exponential(ids[r]) / turn.sum_of_exponentials();
      const auto factor_draw = [&] {
        return row.context.random.uniform(site, first_draw(row, static_cast<index_t>(r)) + row.experts);
      };
      if (row.context.training && ids[r] != turn.top() && !(factor_draw() > (is_first() ? 0.5 : 0.75)))
        weights[r] *= is_first() ? Scalar(0.5) : Scalar(0.3333);
    }
  }

  void backward(const choice_row<Scalar>& row, const weighed_experts<Scalar>& weighed, Scalar* dlogits) const {
    const auto ids = weighed.ids;
    const Scalar factor = row.context.training && is_first() ? Scalar(2) : Scalar(1);
    for (std::size_t r = 0; r < ids.size(); ++r) {
      const rivals turn(row, ids.first(r), options_.jitter);
      const Scalar sum = turn.sum_of_exponentials();
      const Scalar pull = factor * weighed.dweights[r] * turn.exponential(ids[r]) / sum;
      dlogits[ids[r]] += pull;
      for (index_t e = 0; e < row.experts; ++e)
        if (turn.include(e)) dlogits[e] -= pull * turn.exponential(e) / sum;
    }
  }

private:
  bool is_first() const noexcept { return options_.version == sparse_mixer_version::one; }

  static std::span<const index_t> ids_before(const index_t* ids, index_t round) {
    return {ids, static_cast<std::size_t>(round)};
  }

  static index_t first_draw(const choice_row<Scalar>& row, index_t round) {
    return (row.token * row.k + round) * (row.experts + 1);
  }

  /// The experts that may win one round: the largest logit that is left, and those near it.
  class rivals {
  public:
    rivals(const choice_row<Scalar>& row, std::span<const index_t> out, Scalar jitter)
        : logits_(row.logits), experts_(row.experts), out_(out), jitter_(jitter) {
      top_ = kernel::arg_max(logits_, experts_);
      if (!is_out(top_)) return;
      top_ = no_expert;
      for (index_t e = 0; e < experts_; ++e)
        if ((top_ == no_expert || order_key(logits_[e]) > order_key(logits_[top_])) && !is_out(e)) top_ = e;
    }

    index_t top() const noexcept { return top_; }

    bool include(index_t e) const {
      if (e == top_) return true;
      if (is_out(e)) return false;
      return kernel::is_near_rival(logits_[e], logits_[top_], jitter_);
    }

    /// exp(L[e] - m), 1 for the largest even where it is infinite.
    Scalar exponential(index_t e) const {
      return order_key(logits_[e]) == order_key(logits_[top_]) ? Scalar(1) : std::exp(logits_[e] - logits_[top_]);
    }

    Scalar sum_of_exponentials() const {
      Scalar sum = 0;
      kernel::for_each_near_rival(logits_, experts_, logits_[top_], jitter_, [&](index_t e) {
        if (!is_out(e)) sum += exponential(e);
      });
      return sum;
    }

  private:
    bool is_out(index_t e) const { return std::find(out_.begin(), out_.end(), e) != out_.end(); }

    const Scalar* logits_;
    index_t experts_;
    std::span<const index_t> out_;
    Scalar jitter_;
    index_t top_ = no_expert;
  };

  options options_;
};

/// sluice::sparse_mixer_router<float> router{4096, 16, {.top_k = 2, .jitter = 0.01f}};
template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>>
class sparse_mixer_router : public token_choice_router<GateType, sparse_mixer_rule<Scalar>> {
  using base = token_choice_router<GateType, sparse_mixer_rule<Scalar>>;

public:
  using options = typename sparse_mixer_rule<Scalar>::options;

  explicit sparse_mixer_router(index_t inputs, index_t experts, options o = {})
    requires std::constructible_from<GateType, index_t, index_t>
      : base(GateType(inputs, experts), sparse_mixer_rule<Scalar>(o)) {}
  explicit sparse_mixer_router(GateType gate, options o = {}) : base(std::move(gate), sparse_mixer_rule<Scalar>(o)) {}
};

static_assert(explain_choice_rule<sparse_mixer_rule<float>, float>());
static_assert(DifferentiableRouter<sparse_mixer_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
