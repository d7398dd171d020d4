/// Balance loss of Switch, GShard and their many relatives: tokens should not crowd where probabilities already do.
///
///   value = E * sum over e of cost[e] f[e] P[e]     f: share of the tokens at e, a constant;  P[e] = mean of p[t,e]
///   dL[t,j] = (E/T) p[t,j] (cost[j] f[j] - sum over e of cost[e] f[e] p[t,e])       (softmax)
///
///   share                 f[e]                                                          used by
///   first_choice          first choices / T, dropped ones too                           Switch, GShard, V-MoE, Tutel
///   first_choice_kept     first choices that capacity kept / T                          ST-MoE's port
///   first_choice_or_zero  first choices / T, where a dropped one counts for expert 0    Switch's port (a quirk)
///   per_slot              all choices / (T k)                                           Megatron, DeepSeek
///   per_token             all choices / T                                               Mixtral, Qwen, flaxformer
///   survivors             kept choices / number of kept choices
///   survivors_of_both     the same, and P is divided by their number too, not by T      FastMoE's Switch gate
///
/// With even probabilities the value is the sum of f: 1, or k for per_token. Other settings:
///   DeepSeekMoE, by device      {.share = per_slot, .device_experts = E / devices}: for each device's experts, which
///                               stand together, f is their mean f, so that only devices need be equally busy
///   DeepSeek-V3, sequence-wise  {.share = per_slot, .logits = clean, .probability = normalized_sigmoid}, a group each
///   MoE++                       {.share = per_token, .times_experts = false, .cost = {1, ..., tau, ...}}
///   HMoE's penalty              {.share = per_token, .cost = {H_e / mean H, ...}}, or over the largest H
///   X-MoE's gate                {.share = per_slot, .temperature = 0.3}: p = softmax(l / 0.3)       CompeteSMoE's baseline
///   the cluster study           {.probability = none}: p is the noisy score itself, which is that router's weight
///   SparseMixer, version one    {.logits = clean, .probability = near_rivals, .jitter = 0.1}
///
/// Choices that were thinned out at random are in no plan and no share. No choice at all gives 0.
/// Groups, padding, NaN and coefficient 0: loss/common.hpp.
/// Fedus, Zoph, Shazeer 2022, arXiv:2101.03961, eq. 4-6; Lepikhin et al. 2020, arXiv:2006.16668, algorithm 1;
/// Dai et al. 2024 (DeepSeekMoE), arXiv:2401.06066, eq. 12-17.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/loss/common.hpp>

#include <algorithm>
#include <numeric>
#include <vector>

namespace sluice::inline SLUICE_ISA {

enum class balance_share {
  first_choice,
  first_choice_kept,
  first_choice_or_zero,
  per_slot,
  per_token,
  survivors,
  survivors_of_both,
};

struct switch_balance {
  double coefficient = 1e-2;
  balance_share share = balance_share::first_choice;
  loss_logits logits = loss_logits::noisy;
  loss_probability probability = loss_probability::softmax;
  bool times_experts = true;   ///< the factor E
  std::vector<double> cost{};  ///< one an expert; empty means 1
  double jitter = 0;           ///< of loss_probability::near_rivals
  index_t device_experts = 1;  ///< experts with one f, the mean of theirs
  double temperature = 1;      ///< logits are divided by it

  template <std::floating_point Scalar>
  Scalar operator()(const score_signals<Scalar>& seen, const sparse_plan<Scalar>& plan,
                    const routing_context<Scalar>& context, score_gradients<Scalar>& gradients) const {
    if (coefficient == 0) return 0;
    count(plan, context, 0, context.group_count(), gradients.sum_scratch);
    return detail::mean_over_groups(coefficient, context, plan.tokens(), [&](index_t group, double scale) {
      return counted_value(seen, context, group, group, scale, gradients);
    });
  }

  /// Throws std::invalid_argument unless there is no cost or a finite one an expert, devices have equally many experts,
  /// the jitter is at least 0 and the temperature above 0.
  template <std::floating_point Scalar>
  Scalar group_value(const score_signals<Scalar>& seen, const sparse_plan<Scalar>& plan,
                     const routing_context<Scalar>& context, index_t group, double scale,
                     score_gradients<Scalar>& gradients) const {
    count(plan, context, group, group + 1, gradients.sum_scratch);
    return counted_value(seen, context, group, 0, scale, gradients);
  }

private:
  /// sums = [E for P | E for its derivative | E choices of group first | of first + 1 | ... ]
  template <std::floating_point Scalar>
  void count(const sparse_plan<Scalar>& plan, const routing_context<Scalar>& context, index_t first, index_t last,
             buffer<double>& sums) const {
    const index_t experts = plan.experts();
    detail::check_costs("switch_balance", cost, experts);
    if (device_experts < 1 || experts % device_experts != 0)
      throw_invalid("switch_balance cannot part ", experts, " experts into devices of ", device_experts);
    if (!is_at_least(jitter, 0)) throw_invalid("switch_balance needs a jitter >= 0, not ", jitter);
    if (!is_above(temperature, 0)) throw_invalid("switch_balance needs a temperature > 0, not ", temperature);
    sums.assign((2 + last - first) * experts, 0);
    double* choices = sums.data() + 2 * experts;
    for (index_t g = first; g < last; ++g, choices += experts)
      for (index_t t = context.group(g, plan.tokens()).begin; t < context.group(g, plan.tokens()).end; ++t)
        if (!context.is_padding(t))
          for (const index_t i : plan.of_token(t)) choices[plan.expert(i)] += counts(plan.rank(i));
    if (!counts_dropped()) return;
    choices = sums.data() + 2 * experts;
    for (const dropped_assignment<Scalar>& d : plan.dropped()) {
      const index_t g = group_of(context, d.token);
      if (g < first || g >= last || context.is_padding(d.token)) continue;
      const index_t e = share == balance_share::first_choice_or_zero ? 0 : d.expert;
      choices[(g - first) * experts + e] += counts(d.rank);
    }
  }

  /// Whether a choice of this rank is in f.
  bool counts(index_t rank) const {
    switch (share) {
      case balance_share::first_choice:
      case balance_share::first_choice_kept:
      case balance_share::first_choice_or_zero:
        return rank == 0;
      default:
        return true;
    }
  }
  bool counts_dropped() const {
    switch (share) {
      case balance_share::first_choice:
      case balance_share::first_choice_or_zero:
      case balance_share::per_slot:
      case balance_share::per_token:
        return true;
      default:
        return false;
    }
  }

  template <std::floating_point Scalar>
  static index_t group_of(const routing_context<Scalar>& context, index_t token) {
    if (context.groups.empty()) return 0;
    return std::upper_bound(context.groups.begin(), context.groups.end(), token) - context.groups.begin() - 1;
  }

  /// The value of a group whose choices are the row-th that were counted.
  template <std::floating_point Scalar>
  Scalar counted_value(const score_signals<Scalar>& seen, const routing_context<Scalar>& context, index_t group,
                       index_t row, double scale, score_gradients<Scalar>& gradients) const {
    const token_range range = context.group(group, seen.clean.rows());
    const index_t experts = seen.clean.cols();
    double* p_sums = gradients.sum_scratch.data();
    double* c = p_sums + experts;
    const double* choices = c + (1 + row) * experts;
    double all = 0;
    for (index_t e = 0; e < experts; ++e) all += choices[e];
    if (all == 0) return 0;
    // f = choices / of, P = p_sums / over.
    const auto tokens = static_cast<double>(detail::count_tokens(context, range));
    const bool by_survivors = share == balance_share::survivors || share == balance_share::survivors_of_both;
    const double over = share == balance_share::survivors_of_both ? all : tokens;
    const double of = by_survivors                       ? all
                      : share == balance_share::per_slot ? tokens * static_cast<double>(seen.top_k)
                                                         : tokens;
    const detail::group_probabilities<Scalar> p(detail::logits_of(seen, logits), context, range, probability,
                                                gradients.row_scratch, jitter, temperature);
    std::fill_n(p_sums, experts, 0.0);
    p.add_to(p_sums);
    const double factor = scale * (times_experts ? static_cast<double>(experts) : 1.0) / (of * over);
    double value = 0;
    for (index_t e = 0; e < experts; ++e) {
      const double* of_device = choices + e / device_experts * device_experts;
      const double of_all = std::accumulate(of_device, of_device + device_experts, 0.0);
      c[e] = factor * of_all / static_cast<double>(device_experts) *
             (cost.empty() ? 1.0 : cost[static_cast<std::size_t>(e)]);
      value += c[e] * p_sums[e];
    }
    p.backward(c, detail::logits_of(gradients, logits));
    return static_cast<Scalar>(value);
  }
};

}  // namespace sluice::inline SLUICE_ISA
