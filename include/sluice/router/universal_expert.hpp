/// A universal expert beside a router's own: it has what the best of them leaves over.
///
///   m[t] = the largest weight of token t in the plan of another router over E experts; expert E is the universal one
///   plan over E + 1 experts:  w of the own ones (options.by_best: m w),  1 - m[t] for expert E, always
///   dw = g, or m g;  dm = - g[E] (+ sum over the own ones of w g), to the weight that m is
///
/// y[t] = sum of w f_e(x) + (1 - m) f_E(x): a token that no expert of its own fits is left to what all share. by_best
/// multiplies the own experts by m once more, as MoCLE's released code does (m^2 f for k = 1). A token whose experts
/// capacity refused all has the universal one with weight 1; padding and invalid tokens have none. Ranks and expert
/// numbers of the own ones stay as they are, their slots go in token order. Equal weights: m is that of lower rank.
/// Losses cannot look into this router's tape (they would find E logits beside E + 1 experts); put none on the layer.
/// Gou et al. 2023, "Mixture of Cluster-conditional LoRA Experts", arXiv:2312.12379.
#pragma once

#include <sluice/router/plan_rewriter.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Inner>
class universal_expert_router : public plan_rewriter<Inner> {
  using base = plan_rewriter<Inner>;

public:
  using typename base::plan;
  using typename base::scalar;

  struct tape : base::tape {
    buffer<std::uint8_t> is_hidden;
  };
  struct options {
    bool by_best = false;  ///< own experts are multiplied by the largest weight once more
  };

  explicit universal_expert_router(Inner inner, options o = {}) : base(std::move(inner)), options_(o) {}

  index_t experts() const noexcept { return base::experts() + 1; }

  void route(tokens_in<scalar> x, const routing_context<scalar>& context, plan& p, tape& t) const {
    this->inner().route(x, context, t.own, t.inner);
    const plan& own = t.own;
    const index_t tokens = x.rows();
    t.is_hidden.assign(tokens, 0);
    for (index_t token = 0; token < tokens; ++token) t.is_hidden[token] = context.is_padding(token);
    for (const index_t token : own.invalid_tokens()) t.is_hidden[token] = 1;
    base::begin(own, p, experts(), own.most_rows() + tokens);
    for (index_t token = 0; token < tokens; ++token) {
      if (t.is_hidden[token]) continue;
      const index_t best = best_of(own, token);
      const scalar largest = best < 0 ? scalar(0) : own.weight(best);
      index_t rank = 0;
      for (const index_t i : own.of_token(token)) {
        const scalar weight = options_.by_best ? largest * own.weight(i) : own.weight(i);
        p.add(token, own.expert(i), weight, own.rank(i), own.input_scale(i));
        rank = own.rank(i) + 1;
      }
      p.add(token, base::experts(), 1 - largest, rank);
    }
    base::end(own, p);
  }

  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, const plan& p,
                const typename plan::gradient& dplan, tape& t, tokens_out<scalar> dx) {
    const plan& own = t.own;
    base::room_for_gradients(t);
    for (index_t token = 0; token < x.rows(); ++token) {
      const index_t best = best_of(own, token);
      if (best < 0) continue;
      const auto mine = own.of_token(token), theirs = p.of_token(token);
      const scalar largest = own.weight(best);
      scalar dlargest = -dplan.weight[theirs.back()];
      for (std::size_t j = 0; j < mine.size(); ++j) {
        const scalar g = dplan.weight[theirs[j]];
        if (options_.by_best) dlargest += own.weight(mine[j]) * g;
        t.down.weight[mine[j]] = options_.by_best ? largest * g : g;
        if (own.has_input_scale()) t.down.input_scale[mine[j]] = dplan.input_scale[theirs[j]];
      }
      t.down.weight[best] += dlargest;
    }
    base::pass_back(x, context, t, dx);
  }

private:
  /// The assignment of a token's largest weight, -1 if it has none.
  static index_t best_of(const plan& own, index_t token) {
    index_t best = -1;
    for (const index_t i : own.of_token(token))
      if (best < 0 || own.weight(i) > own.weight(best)) best = i;
    return best;
  }

  options options_;
};

}  // namespace sluice::inline SLUICE_ISA
