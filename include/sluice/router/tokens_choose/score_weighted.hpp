/// Top-k routing by which the scores themselves are the weights, noise included: no softmax, no sigmoid.
///
///   L' = L + noise   S = the k largest of L'[t]   w = L'[t,e] for e in S, negative ones too      dL'[t,e] = g[t,e]
///
///   score_weighted_router<float> router{64, 8};
///   score_weighted_router<float, piece_sum_gate<linear_gate<float>>, uniform_noise<float>> router{gate};
///
/// With k = 1, uniform noise and a gate that starts at zero it is the router of the cluster study's released code,
/// whose theory has softmax_rule's weights in their place, of the logits before the noise ({.weights = weighting::pre,
/// .weigh_clean = true}); its balance loss is switch_balance with loss_probability::none. Ties go to the lower expert;
/// a token of which a chosen score is infinite has an infinite weight; NaN, padding and T = 0 as in
/// router/token_choice.hpp. Chen, Deng, Wu, Gu, Li 2022, arXiv:2208.02813, released code.
#pragma once

#include <sluice/gate/linear.hpp>
#include <sluice/kernel/top_k.hpp>
#include <sluice/router/token_choice.hpp>

#include <algorithm>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class score_weighted_rule {
public:
  struct options {
    index_t top_k = 1;
  };

  explicit score_weighted_rule(options o) : options_(o) {}

  index_t top_k() const noexcept { return options_.top_k; }
  void score(const choice_row<Scalar>& row, Scalar* scores) const { std::copy_n(row.logits, row.experts, scores); }
  index_t choose(const choice_row<Scalar>& row, index_t* ids) const {
    kernel::top_k(row.logits, row.experts, row.k, ids);
    return row.k;
  }
  void weigh(const choice_row<Scalar>& row, std::span<const index_t> ids, Scalar* weights) const {
    for (std::size_t j = 0; j < ids.size(); ++j) weights[j] = row.logits[ids[j]];
  }
  void backward(const choice_row<Scalar>&, const weighed_experts<Scalar>& weighed, Scalar* dlogits) const {
    for (std::size_t j = 0; j < weighed.ids.size(); ++j) dlogits[weighed.ids[j]] += weighed.dweights[j];
  }

private:
  options options_;
};

template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>, typename Noise = no_noise<Scalar>>
class score_weighted_router : public token_choice_router<GateType, score_weighted_rule<Scalar>, Noise> {
  using base = token_choice_router<GateType, score_weighted_rule<Scalar>, Noise>;

public:
  using options = typename score_weighted_rule<Scalar>::options;

  score_weighted_router(index_t inputs, index_t experts,
                        options o = {}) requires std::constructible_from<GateType, index_t, index_t>
      : score_weighted_router(GateType(inputs, experts), o) {}
  explicit score_weighted_router(GateType gate, options o = {}, Noise noise = {})
      : base(std::move(gate), score_weighted_rule<Scalar>(o), std::move(noise)) {}
};

static_assert(explain_choice_rule<score_weighted_rule<float>, float>());
static_assert(DifferentiableRouter<score_weighted_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
