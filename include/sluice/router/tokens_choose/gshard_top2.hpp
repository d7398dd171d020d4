/// GShard-style top-2 (top-n) router: the first choice always, further ones only if they matter enough.
///
///   p = softmax(L[t]), S = the n largest, g_j = p_j / guard(sum of p over S)
///   guard(v) = max(v, smallest_sum) + added_to_sum
///   choice j > 0 is asked for   all        always
///                               none       never
///                               threshold  if g_j > thr_j
///                               random     if u < g_j / max(thr_j, 1e-9), that is with probability min(1, g_j / thr_j)
///
/// u are uniform draws at gshard_rule::thinning_site, position j*T + t over the whole batch of T tokens. With
/// one_draw_a_group, for gates that score a group as a whole, t is the group's first token. Training and inference have
/// a policy each; inference takes all unless told otherwise, for it should draw nothing (ST-MoE does).
/// Thinned choices take no slot and stay in the denominators. With renormalize_after_drop, weights are made anew of
/// what capacity kept (DeepSpeed): a lone survivor gets 1. With sampled, the choices after the first are the largest
/// of L[t] + Gumbel noise, drawn at gshard_rule::sampling_site, position t*E + e; weights still come from L. With
/// straight_through the weights' gradient also comes through the experts' inputs: no derivative then, by design.
/// Gradients as `renorm` in top_k_router; which choices were drawn is a constant. Ties, NaN and T = 0 as there.
///
///   GShard     training {.policy = random, .threshold = {0.5}}                           arXiv:2006.16668, algorithm 1
///   ST-MoE     both {.policy = random, .threshold = {0.2}}, straight_through, capacity_limit::st_moe  arXiv:2202.08906
///   DeepSpeed  both {.policy = all, .sampled = true}, renormalize_after_drop, position                arXiv:2201.05596
#pragma once

#include <sluice/capacity/position.hpp>
#include <sluice/kernel/top_k.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include <algorithm>
#include <span>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// What happens to the choices of a token after its first.
enum class further_choices { all, none, threshold, random };

template <FloatOrDouble Scalar>
struct choice_policy {
  further_choices policy = further_choices::random;
  std::vector<Scalar> threshold = {Scalar(0.2)};  ///< one for all ranks, or one each for the ranks 1, 2, ...
  bool sampled = false;                           ///< chosen under Gumbel noise
  bool one_draw_a_group = false;                  ///< tokens of a group with equal scores share their choices
};

/// The rule of GShard routing, for one token.
template <FloatOrDouble Scalar, index_t TopK = dynamic>
class gshard_rule {
public:
  static constexpr random_site thinning_site{"gshard.thinning"};
  static constexpr random_site sampling_site{"gshard.sampling"};

  struct options {
    index_t top_k = TopK == dynamic ? 2 : TopK;
    choice_policy<Scalar> training{};
    choice_policy<Scalar> inference{.policy = further_choices::all};
    Scalar smallest_sum = Scalar(1e-9);
    Scalar added_to_sum = 0;
    bool renormalize_after_drop = false;
    bool straight_through = false;
  };

  /// Throws std::invalid_argument if an option makes no sense.
  explicit gshard_rule(options o)
      : options_(std::move(o)),
        softmax_(
            {.top_k = options_.top_k, .smallest_sum = options_.smallest_sum, .added_to_sum = options_.added_to_sum}) {
    for (const choice_policy<Scalar>* p : {&options_.training, &options_.inference})
      for (const Scalar threshold : p->threshold)
        if (!detail::is_usable(threshold) || threshold < Scalar(0))
          throw_invalid("a threshold of further choices cannot be ", threshold);
  }

  index_t top_k() const noexcept { return softmax_.top_k(); }
  const options& settings() const noexcept { return options_; }
  void validate(index_t) const {
    check_thresholds(options_.training, top_k());
    check_thresholds(options_.inference, top_k());
  }
  void validate_call(const choice_call<Scalar>& call) const {
    softmax_.validate_call(call);
    check_thresholds(policy_of(call.context), call.k);
  }

  void score(const choice_row<Scalar>& row, Scalar* scores) const { softmax_.score(row, scores); }

  index_t choose(const choice_row<Scalar>& row, index_t* ids) const {
    if (!policy_of(row.context).sampled || row.k == 1) return softmax_.choose(row, ids);
    const index_t first = kernel::arg_max(row.logits, row.experts);
    for (index_t e = 0; e < row.experts; ++e) {  // all but the first, closed up
      if (e == first) continue;
      const double draw = row.context.random.gumbel(sampling_site, drawn_for(row) * row.experts + e);
      row.scratch[e - (e > first)] = row.logits[e] + static_cast<Scalar>(draw);
    }
    ids[0] = first;
    kernel::top_k(row.scratch, row.experts - 1, row.k - 1, ids + 1);
    for (index_t j = 1; j < row.k; ++j) ids[j] += ids[j] >= first;
    return row.k;
  }

  void weigh(const choice_row<Scalar>& row, std::span<const index_t> ids, Scalar* weights) const {
    softmax_.weigh(row, ids, weights);
  }

  bool keeps(const choice_row<Scalar>& row, index_t rank, Scalar weight) const {
    const choice_policy<Scalar>& p = policy_of(row.context);
    if (rank == 0 || p.policy == further_choices::all) return true;
    if (p.policy == further_choices::none) return false;
    const Scalar threshold = p.threshold.size() == 1 ? p.threshold[0] : p.threshold[static_cast<std::size_t>(rank) - 1];
    if (p.policy == further_choices::threshold) return weight > threshold;
    const double draw = row.context.random.uniform(thinning_site, rank * row.tokens + drawn_for(row));
    return draw < static_cast<double>(weight) / (std::max)(static_cast<double>(threshold), 1e-9);
  }

  void backward(const choice_row<Scalar>& row, const weighed_experts<Scalar>& weighed, Scalar* dlogits) const {
    softmax_.backward(row, weighed, dlogits);
  }

  weight_application<Scalar> application() const noexcept {
    return {.use = options_.straight_through ? weight_use::straight_through : weight_use::output,
            .renormalize_after_drop = options_.renormalize_after_drop};
  }

private:
  const choice_policy<Scalar>& policy_of(const routing_context<Scalar>& context) const noexcept {
    return context.training ? options_.training : options_.inference;
  }

  /// The token whose draws count.
  index_t drawn_for(const choice_row<Scalar>& row) const {
    const std::span<const index_t> borders = row.context.groups;
    if (!policy_of(row.context).one_draw_a_group) return row.token;
    return borders.empty() ? 0 : *(std::upper_bound(borders.begin(), borders.end(), row.token) - 1);
  }

  static void check_thresholds(const choice_policy<Scalar>& p, index_t k) {
    if (p.policy == further_choices::all || p.policy == further_choices::none || p.threshold.size() == 1) return;
    if (static_cast<index_t>(p.threshold.size()) < k - 1)
      throw_invalid("k = ", k, " needs ", k - 1, " thresholds of further choices, or one for all; there are ",
                    p.threshold.size());
  }

  options options_;
  softmax_rule<Scalar, TopK> softmax_;
};

/// sluice::gshard_router<float> router{64, 8, {.top_k = 2}, position_capacity(capacity_limit::gshard({1.25, 2.0}))};
/// Without a capacity policy: position, ceil(cf k T / E), cf 1.25 in training and 2 at inference.
template <FloatOrDouble Scalar, index_t Experts = dynamic, index_t TopK = dynamic,
          typename GateType = linear_gate<Scalar>, typename Capacity = position_capacity>
class gshard_router
    : public token_choice_router<GateType, gshard_rule<Scalar, TopK>, no_noise<Scalar>, Capacity, Experts> {
  using rule_type = gshard_rule<Scalar, TopK>;
  using base = token_choice_router<GateType, rule_type, no_noise<Scalar>, Capacity, Experts>;

public:
  using options = typename rule_type::options;

  explicit gshard_router(index_t inputs, index_t experts = Experts, options o = {},
                         Capacity capacity = default_capacity())
    requires std::constructible_from<GateType, index_t, index_t>
      : gshard_router(GateType(inputs, experts), std::move(o), std::move(capacity)) {}

  explicit gshard_router(GateType gate, options o = {}, Capacity capacity = default_capacity())
      : gshard_router(std::move(gate), rule_type(std::move(o)), std::move(capacity)) {}

private:
  gshard_router(GateType&& gate, rule_type rule, Capacity&& capacity)
      : base(std::move(gate), rule, {}, std::move(capacity), rule.application()) {}

  static Capacity default_capacity() {
    if constexpr (std::same_as<Capacity, position_capacity>)
      return position_capacity(capacity_limit::gshard({1.25, 2.0}));
    else
      return {};
  }
};

static_assert(explain_choice_rule<gshard_rule<float>, float>());
static_assert(DifferentiableRouter<gshard_router<float>>);
static_assert(DifferentiableRouter<gshard_router<double, 8, 2, linear_gate<double>, dropless>>);

}  // namespace sluice::inline SLUICE_ISA
