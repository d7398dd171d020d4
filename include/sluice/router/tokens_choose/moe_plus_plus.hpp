/// MoE++ router: top-k over feed-forward experts and experts that cost nothing, scored with the previous layer's help.
///
///   G [T,E] = W2 tanh(W1 x) + R G_previous        (residual_gate<two_layer_gate>; any gate will do). The hidden layer of
///                                                 8E takes 8 (1 + E/D) times the products of a linear gate, R E² more
///   S = the k largest of G[t];  z = G[t], or G[t] s / sigma[t] with options.target_deviation s (gate/standardized.hpp)
///   released   w = softmax(z over S without the zero experts), and 0 for a zero expert in S: as if its probability
///              were removed before the others are divided by their sum
///   mixtral    w = softmax(z over S), zero experts included
///
/// Experts are numbered FFNs, constants, copy, zero: the last options.zero_experts are zero experts. A token with
/// nothing but zero experts has weights 0 and output 0 (the published 0/0). With options.multiply_input every expert's
/// input is multiplied by the router's own k, as released (the released code does so with `released` weights only).
/// tape.signals.clean is G, not scaled: what the next layer takes as previous_logits. Its gradient comes back through
/// tape.gate.previous_logits_gradient() (gate/residual.hpp shows the loop).
///
/// Gradients: dz[j] = w[j] (g[j] - sum over S of w g) for j in S; a zero expert gets none under `released`. k = 1 gives
/// constant weights and the gate no gradient; it is refused unless options.constant_weight is set. NaN, ties and T = 0
/// as top_k_router. Logits that have no deviation (gate/standardized.hpp), infinite ones too, are used as they are.
///
/// The layer around it:
///   experts    expert_union{expert_bank<swiglu<float>>{8, D, H}, expert_bank<constant_expert<float>>{2, D},
///                           expert_bank<identity_expert<float>>{1, D}, expert_bank<zero_expert<float>>{1, D}}
///   loss       moe_plus_plus_balance(8, 4)
///   capacity   position_capacity{capacity_limit::moe_plus_plus(1.1, 0.75, 8, 4)}
/// Jin et al. 2024, arXiv:2410.07348, and its released code.
#pragma once

#include <sluice/gate/residual.hpp>
#include <sluice/gate/standardized.hpp>
#include <sluice/gate/two_layer.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/kernel/top_k.hpp>
#include <sluice/loss/switch_balance.hpp>
#include <sluice/router/token_choice.hpp>

namespace sluice::inline SLUICE_ISA {

enum class moe_plus_plus_weights { released, mixtral };

/// The rule of MoE++ routing, for one token.
template <FloatOrDouble Scalar>
class moe_plus_plus_rule {
public:
  struct options {
    index_t top_k = 2;
    moe_plus_plus_weights weights = moe_plus_plus_weights::released;
    index_t zero_experts = 1;
    Scalar target_deviation = 0;   ///< 0: logits are used as they are
    bool multiply_input = true;    ///< experts see k x
    bool constant_weight = false;  ///< allow k = 1
  };

  /// Throws std::invalid_argument if an option makes no sense.
  explicit moe_plus_plus_rule(options o) : options_(o) {
    if (o.zero_experts < 0) throw_invalid("moe_plus_plus_router cannot have ", o.zero_experts, " zero experts");
    if (!detail::is_usable(o.target_deviation) || o.target_deviation < Scalar(0))
      throw_invalid("moe_plus_plus_router cannot scale logits to a deviation of ", o.target_deviation);
    refuse_constant_weight(o.top_k);
  }

  index_t top_k() const noexcept { return options_.top_k; }
  void validate(index_t experts) const {
    if (options_.zero_experts > experts)
      throw_invalid("moe_plus_plus_router cannot have ", options_.zero_experts, " zero experts among E = ", experts);
    if (scales() && experts < 2) throw_invalid("moe_plus_plus_router scales logits to a deviation only with E >= 2");
  }
  void validate_call(const choice_call<Scalar>& call) const {
    if (call.context.training) refuse_constant_weight(call.k);
  }

  void score(const choice_row<Scalar>& row, Scalar* scores) const {
    const Scalar factor = scale_of(row);
    for (index_t e = 0; e < row.experts; ++e) scores[e] = factor * row.logits[e];
    kernel::softmax(scores, scores, row.experts);
  }

  index_t choose(const choice_row<Scalar>& row, index_t* ids) const {
    kernel::top_k(row.logits, row.experts, row.k, ids);
    return row.k;
  }

  void weigh(const choice_row<Scalar>& row, std::span<const index_t> ids, Scalar* weights) const {
    // Exponentials against the largest logit that has a weight: the division cannot meet 0 however unlikely its expert
    // is.
    index_t best = no_expert;
    for (const index_t e : ids)
      if (has_weight(e, row.experts) && (best == no_expert || order_key(row.logits[e]) > order_key(row.logits[best])))
        best = e;
    const Scalar factor = scale_of(row);
    Scalar sum = 0;
    for (std::size_t j = 0; j < ids.size(); ++j) {
      const bool counts = has_weight(ids[j], row.experts);
      weights[j] = counts ? exponential(factor, row.logits[ids[j]], row.logits[best]) : Scalar(0);
      sum += weights[j];
    }
    for (std::size_t j = 0; j < ids.size() && best != no_expert; ++j) weights[j] /= sum;
  }

  void backward(const choice_row<Scalar>& row, const weighed_experts<Scalar>& weighed, Scalar* dlogits) const {
    const auto& [ids, weights, dweights] = weighed;
    Scalar inner = 0;
    for (std::size_t j = 0; j < ids.size(); ++j) inner += weights[j] * dweights[j];
    const Scalar factor = scale_of(row);
    Scalar along = 0;  // <dz, G>
    for (std::size_t j = 0; j < ids.size(); ++j) {
      const Scalar dz = weights[j] * (dweights[j] - inner);
      dlogits[ids[j]] += factor * dz;
      if (scales()) along += dz * row.logits[ids[j]];
    }
    if (!scales()) return;
    detail::subtract_spread_pull(row.logits, row.experts, detail::spread_of(row.logits, row.experts),
                                 options_.target_deviation, along, dlogits);
  }

private:
  bool scales() const noexcept { return options_.target_deviation > Scalar(0); }

  bool has_weight(index_t expert, index_t experts) const noexcept {
    return options_.weights == moe_plus_plus_weights::mixtral || expert < experts - options_.zero_experts;
  }

  Scalar scale_of(const choice_row<Scalar>& row) const {
    if (!scales()) return Scalar(1);
    return detail::standardizing_factor(detail::spread_of(row.logits, row.experts), options_.target_deviation);
  }

  /// exp(factor (logit - largest)); 1 also where both are infinite.
  static Scalar exponential(Scalar factor, Scalar logit, Scalar largest) {
    return !is_nan(logit) && order_key(logit) == order_key(largest) ? Scalar(1) : std::exp(factor * (logit - largest));
  }

  void refuse_constant_weight(index_t k) const {
    if (k == 1 && !options_.constant_weight)
      throw_invalid(
          "moe_plus_plus_router with k = 1 gives every weight 1 and the gate no gradient; set constant_weight if that "
          "is wanted");
  }

  options options_;
};

/// sluice::moe_plus_plus_router<float> router{64, 12, {.top_k = 2}};     a first layer: GateType two_layer_gate<float>
template <FloatOrDouble Scalar, typename GateType = residual_gate<two_layer_gate<Scalar>>,
          typename Capacity = dropless>
class moe_plus_plus_router
    : public token_choice_router<GateType, moe_plus_plus_rule<Scalar>, no_noise<Scalar>, Capacity> {
  using base = token_choice_router<GateType, moe_plus_plus_rule<Scalar>, no_noise<Scalar>, Capacity>;

public:
  using options = typename moe_plus_plus_rule<Scalar>::options;

  moe_plus_plus_router(index_t inputs, index_t experts, options o = {}, Capacity capacity = {})
    requires std::constructible_from<GateType, index_t, index_t>
      : moe_plus_plus_router(GateType(inputs, experts), o, std::move(capacity)) {}

  explicit moe_plus_plus_router(GateType gate, options o = {}, Capacity capacity = {})
      : base(std::move(gate), moe_plus_plus_rule<Scalar>(o), {}, std::move(capacity),
             {.input_factor = o.multiply_input ? static_cast<Scalar>(o.top_k) : Scalar(1)}) {}
};

/// beta × sum over e of eta[e] f[e] P[e], eta = 1 for FFN experts and tau for those that cost nothing; f[e] is the
/// share of tokens that choose e. A smaller tau sends more tokens to experts that cost nothing.
inline switch_balance moe_plus_plus_balance(index_t ffn_experts, index_t zero_computation_experts, double tau = 0.75,
                                            double beta = 0.01) {
  if (ffn_experts < 0 || zero_computation_experts < 0)
    throw_invalid("moe_plus_plus_balance needs counts of experts >= 0, not ", ffn_experts, " and ",
                  zero_computation_experts);
  switch_balance loss{.coefficient = beta, .share = balance_share::per_token, .times_experts = false};
  loss.cost.assign(static_cast<std::size_t>(ffn_experts), 1.0);
  loss.cost.resize(static_cast<std::size_t>(ffn_experts + zero_computation_experts), tau);
  return loss;
}

static_assert(DifferentiableRouter<moe_plus_plus_router<float>>);
static_assert(DifferentiableRouter<moe_plus_plus_router<double, linear_gate<double>>>);

}  // namespace sluice::inline SLUICE_ISA
