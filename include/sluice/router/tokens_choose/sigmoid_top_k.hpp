/// Sigmoid top-k router: scores beside which a bias chooses, so that loads are balanced without a loss.
///
///   X [T,D]   L [T,E] = gate(X)   s = score(L)   c = s + b, b [E]   S = the k largest of c[t], under the group limit
///   w = s[e] for e in S;  renormalize: w = s[e] / (max(sum of s over S, smallest_sum) + added_to_sum)
///   then times `scaling`, and times r[e] with expert_scale
///
/// Scores are options.scores: sigmoid(L), every expert's score on its own; sqrt(softplus(L)); or softmax(L) over the
/// experts. The bias b only chooses: weights are made of s, and b has no gradient. After each optimiser step, with
/// loads n counted over the batches since the last one:  b[e] += bias_rate * sign(mean of n - n[e]), sign(0) = 0.  It
/// is a state named "rule.bias", starts at zero and is saved with the model. Loads are what capacity kept. The scales
/// r [E] are a state too ("rule.scale", initially 1): kept and saved, not learned. Gradients, N what renormalising
/// divides by: ds[j] = scaling r (g[j] - sum over S of (w / scaling r) g) / N, without renormalising, or below
/// smallest_sum, without the sum;  dl = ds s', with s' = s (1 - s) for the sigmoid, sigmoid(l) / 2s for
/// sqrt(softplus);  experts that were not chosen get none. For the softmax dl[j] = s[j] (ds[j] - sum over S of s ds),
/// for every expert. With k = 1, renormalised weights are constant: refused as in top_k_router. Infinite scores,
/// those of infinite logits under the square root, share what renormalised weights make up. Ties, NaN and T = 0 as
/// there.
///
///   DeepSeek-V3   {.top_k = 8, .scaling = 2.5, .groups = {.groups = 8, .kept = 4, .score = sum_of_two}}
///   DeepSeek-V4   {.top_k = 6, .scaling = 1.5, .scores = expert_scores::sqrt_softplus}
///   Ernie 4.5     {.top_k = 6, .added_to_sum = 0, .smallest_sum = 1e-12, .scores = expert_scores::softmax}
///   sigma-MoE     {.renormalize = false, .selection_bias = false, .expert_dropout = 0.05}      MoEUT: see below
///   Llama-4       the same with .top_k = 1, .use = weight_use::input
/// With expert_dropout a training call leaves every expert out of every token's choice with that chance, drawn at
/// sigmoid_rule::site, position t E + e; a token may get fewer than k, and none. sigma-MoE's regulariser is
/// entropy_loss, its initial gate has rows of one length (train/initialize.hpp). Csordas et al. 2023, arXiv:2310.10837;
/// 2024 (MoEUT), arXiv:2405.16039.
/// DeepSeek-AI 2024, arXiv:2412.19437, eq. 12-16;  Wang et al. 2024, arXiv:2408.15664.
#pragma once

#include <sluice/gate/linear.hpp>
#include <sluice/kernel/logistic.hpp>
#include <sluice/kernel/order.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/kernel/top_k.hpp>
#include <sluice/router/token_choice.hpp>
#include <sluice/router/tokens_choose/group_limit.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

namespace sluice::inline SLUICE_ISA {

/// What an expert's logit becomes before the choice.
enum class expert_scores { sigmoid, sqrt_softplus, softmax };

/// The rule of sigmoid routing, for one token.
template <FloatOrDouble Scalar, index_t TopK = dynamic>
class sigmoid_rule {
public:
  static constexpr random_site site{"sigmoid_top_k.dropout"};

  struct options {
    index_t top_k = TopK == dynamic ? 2 : TopK;
    bool renormalize = true;
    bool constant_weight = false;  ///< allow k = 1 with renormalize
    bool selection_bias = true;
    Scalar bias_rate = Scalar(1e-3);
    Scalar added_to_sum = Scalar(1e-20);
    Scalar scaling = 1;
    group_limit groups{};
    weight_use use = weight_use::output;
    expert_scores scores = expert_scores::sigmoid;
    Scalar smallest_sum = 0;
    bool expert_scale = false;  ///< weights are multiplied by a number of their expert
    double expert_dropout = 0;  ///< chance of an expert to be left out of a token's choice, in training
  };

  /// Throws std::invalid_argument if an option makes no sense.
  sigmoid_rule(index_t experts, options o) : options_(o), top_k_(o.top_k) {
    if (experts < 1) throw_invalid("sigmoid routing needs E >= 1, not E = ", experts);
    if (TopK != dynamic && o.top_k != TopK)
      throw_invalid("the router's type fixes k = ", TopK, "; options ask for ", o.top_k);
    if (!detail::is_usable(o.scaling) || o.scaling == Scalar(0))
      throw_invalid("weights cannot be scaled by ", o.scaling);
    for (const Scalar guard : {o.added_to_sum, o.smallest_sum})
      if (!detail::is_usable(guard) || guard < Scalar(0))
        throw_invalid("a guard on the sum of weights cannot be ", guard);
    if (is_nan(o.expert_dropout) || o.expert_dropout < 0 || !(o.expert_dropout < 1))
      throw_invalid("experts cannot be left out with a chance of ", o.expert_dropout);
    set_bias_rate(o.bias_rate);
    refuse_constant_weight(o.top_k);
    if (o.selection_bias) bias_ = {{experts}, parameter_role::state};
    if (o.expert_scale) scale_ = {{experts}, parameter_role::state, initial_values::constant(1)};
  }

  index_t top_k() const noexcept { return top_k_.value(); }
  void validate(index_t experts) const {
    options_.groups.validate(experts, top_k());
    if (options_.selection_bias && bias_.size() != experts)
      throw_invalid("the selection bias is for ", bias_.size(), " experts, the router has E = ", experts);
  }
  void validate_call(const choice_call<Scalar>& call) const {
    options_.groups.validate(call.experts, call.k);
    if (call.context.training) refuse_constant_weight(call.k);
  }

  void score(const choice_row<Scalar>& row, Scalar* scores) const {
    switch (options_.scores) {
      case expert_scores::sigmoid:
        kernel::logistic(row.logits, scores, row.experts);
        break;
      case expert_scores::sqrt_softplus:
        for (index_t e = 0; e < row.experts; ++e) scores[e] = std::sqrt(kernel::softplus(row.logits[e]));
        break;
      case expert_scores::softmax:
        kernel::softmax(row.logits, scores, row.experts);
        break;
    }
  }

  index_t choose(const choice_row<Scalar>& row, index_t* ids) const {
    const Scalar* choosing = row.scores;
    const bool drops = row.context.training && options_.expert_dropout > 0;
    if (options_.selection_bias || drops) {
      for (index_t e = 0; e < row.experts; ++e)
        row.scratch[e] = drops && is_left_out(row, e) ? -std::numeric_limits<Scalar>::infinity()
                         : options_.selection_bias    ? row.scores[e] + bias_.data()[e]
                                                      : row.scores[e];
      choosing = row.scratch;
    }
    if (options_.groups.limits())
      options_.groups.top_k(choosing, row.scratch + row.experts, row.experts, row.k, ids);
    else
      kernel::top_k(choosing, row.experts, row.k, ids);
    if (!drops) return row.k;
    return std::remove_if(ids, ids + row.k, [&](index_t e) { return is_left_out(row, e); }) - ids;
  }

  void weigh(const choice_row<Scalar>& row, std::span<const index_t> ids, Scalar* weights) const {
    const Scalar sum = sum_of(row.scores, ids);
    const Scalar total = options_.renormalize ? divisor(sum) : Scalar(1);
    Scalar infinite = 0;  // scores that share the whole
    if (options_.renormalize && is_infinite(sum))
      for (const index_t e : ids) infinite += is_infinite(row.scores[e]) ? Scalar(1) : Scalar(0);
    for (std::size_t j = 0; j < ids.size(); ++j) {
      const Scalar score = row.scores[ids[j]];
      const Scalar share = infinite > Scalar(0) && is_infinite(score) ? 1 / infinite : score / total;
      weights[j] = share * factor_of(ids[j]);
    }
  }

  void backward(const choice_row<Scalar>& row, const weighed_experts<Scalar>& weighed, Scalar* dlogits) const {
    const auto& [ids, weights, dweights] = weighed;
    const Scalar sum = sum_of(row.scores, ids);
    const Scalar total = options_.renormalize ? divisor(sum) : Scalar(1);
    Scalar inner = 0;  // the pull of the divisor, where it moves with the scores
    if (options_.renormalize && !(sum < options_.smallest_sum))
      for (std::size_t j = 0; j < ids.size(); ++j) inner += weights[j] * dweights[j];
    Scalar pull = 0;  // of the softmax's sum on every expert
    for (std::size_t j = 0; j < ids.size(); ++j) {
      const index_t e = ids[j];
      // By total in the end: it may be as small as the slope, and a quotient by it alone be infinite.
      const Scalar push = factor_of(e) * dweights[j] - inner;
      dlogits[e] += push * (slope(row, e) / total);
      pull += push * (row.scores[e] / total);
    }
    if (options_.scores == expert_scores::softmax)
      for (index_t e = 0; e < row.experts; ++e) dlogits[e] -= pull * row.scores[e];
  }

  void after_step(const routing_statistics& statistics) {
    if (!options_.selection_bias || statistics.load.size() != bias_.size()) return;
    index_t total = 0;
    for (const index_t load : statistics.load) total += load;
    for (index_t e = 0; e < bias_.size(); ++e) {
      const index_t excess = statistics.load[e] * bias_.size() - total;  // E times what is above the mean: exact
      bias_.data()[e] += excess < 0 ? options_.bias_rate : excess > 0 ? -options_.bias_rate : Scalar(0);
    }
  }

  /// gamma of the bias update: 0.001 in training, 0 near its end.
  void set_bias_rate(Scalar rate) {
    if (!detail::is_usable(rate) || rate < Scalar(0)) throw_invalid("the rate of a selection bias cannot be ", rate);
    options_.bias_rate = rate;
  }

  /// The selection bias b [E]; empty without one.
  std::span<Scalar> bias() noexcept { return bias_.value(); }
  std::span<const Scalar> bias() const noexcept { return bias_.value(); }
  /// The experts' scales r [E]; empty without them.
  std::span<Scalar> scale() noexcept { return scale_.value(); }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if (self.options_.selection_bias) visit("bias", self.bias_);
    if (self.options_.expert_scale) visit("scale", self.scale_);
  }

private:
  void refuse_constant_weight(index_t k) const {
    if (k == 1 && options_.renormalize && !options_.constant_weight)
      throw_invalid(
          "k = 1 with renormalised weights gives every weight the same value and the gate no gradient; use "
          "renormalize = false, or set constant_weight");
  }

  bool is_left_out(const choice_row<Scalar>& row, index_t e) const {
    return row.context.random.uniform(site, row.token * row.experts + e) < options_.expert_dropout;
  }

  static Scalar sum_of(const Scalar* scores, std::span<const index_t> ids) {
    Scalar sum = 0;
    for (const index_t e : ids) sum += scores[e];
    return sum;
  }

  static bool is_infinite(const Scalar& v) { return order_key(v) == detail::infinity_bits<Scalar>; }

  /// What renormalising divides by; 1 where all chosen scores and the guards are zero.
  Scalar divisor(Scalar sum) const {
    const Scalar guarded = (sum < options_.smallest_sum ? options_.smallest_sum : sum) + options_.added_to_sum;
    return guarded == Scalar(0) ? Scalar(1) : guarded;
  }

  Scalar factor_of(index_t expert) const {
    return options_.expert_scale ? options_.scaling * scale_.data()[expert] : options_.scaling;
  }

  /// The derivative of an expert's score by its own logit, but for the softmax's sum.
  Scalar slope(const choice_row<Scalar>& row, index_t e) const {
    const Scalar s = row.scores[e];
    switch (options_.scores) {
      case expert_scores::sigmoid:
        return s * kernel::logistic(-row.logits[e]);  // 1 - s as sigmoid(-l): exact where s rounds to 1
      case expert_scores::sqrt_softplus:
        return s == Scalar(0) ? Scalar(0) : kernel::logistic(row.logits[e]) / (2 * s);
      case expert_scores::softmax:
        break;
    }
    return s;
  }

  options options_;
  SLUICE_NO_UNIQUE_ADDRESS extent<TopK> top_k_;
  parameter<Scalar> bias_;
  parameter<Scalar> scale_;
};

/// sluice::sigmoid_router<float> router{64, 8, {.top_k = 2}};
template <FloatOrDouble Scalar, index_t Experts = dynamic, index_t TopK = dynamic,
          typename GateType = linear_gate<Scalar>, typename Capacity = dropless>
class sigmoid_router
    : public token_choice_router<GateType, sigmoid_rule<Scalar, TopK>, no_noise<Scalar>, Capacity, Experts> {
  using base = token_choice_router<GateType, sigmoid_rule<Scalar, TopK>, no_noise<Scalar>, Capacity, Experts>;

public:
  using options = typename sigmoid_rule<Scalar, TopK>::options;

  explicit sigmoid_router(index_t inputs, index_t experts = Experts, options o = {}, Capacity capacity = {})
    requires std::constructible_from<GateType, index_t, index_t>
      : sigmoid_router(experts, GateType(inputs, experts), o, std::move(capacity)) {}

  explicit sigmoid_router(GateType gate, options o = {}, Capacity capacity = {})
      : sigmoid_router(gate.experts(), std::move(gate), o, std::move(capacity)) {}

  std::span<Scalar> bias() noexcept { return this->rule().bias(); }
  std::span<const Scalar> bias() const noexcept { return this->rule().bias(); }

private:
  sigmoid_router(index_t experts, GateType&& gate, options o, Capacity&& capacity)
      : base(std::move(gate), sigmoid_rule<Scalar, TopK>(experts, o), {}, std::move(capacity), {.use = o.use}) {}
};

static_assert(explain_choice_rule<sigmoid_rule<float>, float>());
static_assert(DifferentiableRouter<sigmoid_router<float>>);
static_assert(DifferentiableRouter<sigmoid_router<double, 8, 2>>);

}  // namespace sluice::inline SLUICE_ISA
