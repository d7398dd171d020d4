/// Experts a token by a schedule: k changes from step to step of training, for all tokens alike (SMoE-Dropout).
///
///   top_k_schedule, from k0 = first to k1 = last in N steps; s = step, at least 0 and at most N; round half to even
///     linear        k = round((k1 - k0) s / N) + k0                                    the method's default
///     cosine        k = round((k0 - k1) cos(pi s / 2N)) + k1                           fast at the end
///     exponential   k = round((k0 - k1) 0.99^(s div max(1, N div 300))) + k1           fast at the start
///     doubling      1, 2, 4, 8, 16 and on until k1 is reached, N / count steps each; a decrease counts down to 1. All of
///                   them held between k0 and k1: from 2 to 8 that is 2, 2, 4, 8, 8. The released numbers end at 16
///
/// first > last is a decrease. From step N on k is k1, but for the exponential, which goes on towards it.
///
/// scheduled_rule<Scalar, Rule> is any rule with such a k in training; at inference its own top_k(), and a call may
/// always ask for another one. smoe_dropout_router is that of top-k softmax over a random frozen gate:
///
///   L = x W^T + b, never learned   S = the k(step) largest of L[t]   w = softmax(L[t] over S)
///
/// With k = 1 every weight is 1. W and b are parameters, saved but frozen; x has the gradient of top_k's `post`. A
/// model that has been trained so may be run with any k: more experts, better outputs. Ties, NaN and T = 0 as in
/// top_k_router. Chen et al. 2023, "Sparse MoE as the New Dropout", arXiv:2303.01610.
#pragma once

#include <sluice/gate/frozen.hpp>
#include <sluice/gate/linear.hpp>
#include <sluice/router/rule_decorator.hpp>
#include <sluice/router/token_choice.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

namespace sluice::inline SLUICE_ISA {

enum class schedule_shape { linear, cosine, exponential, doubling };

/// k by step.
class top_k_schedule {
public:
  struct options {
    index_t first = 1;
    index_t last = 1;
    index_t steps = 1;  ///< N
    schedule_shape shape = schedule_shape::linear;
  };

  /// Throws std::invalid_argument unless first, last and steps are between 1 and 2^31.
  top_k_schedule(options o) : options_(o) {
    for (const index_t number : {o.first, o.last, o.steps})
      if (number < 1 || number > index_t{1} << 31)
        throw_invalid("a schedule of k needs first, last and steps between 1 and 2^31, not ", o.first, ", ", o.last,
                      " and ", o.steps);
  }

  index_t smallest() const noexcept { return (std::min)(options_.first, options_.last); }
  index_t largest() const noexcept { return (std::max)(options_.first, options_.last); }

  index_t operator()(index_t step) const noexcept {
    const index_t s = (std::clamp)(step, index_t{0}, options_.steps);
    const auto steps = static_cast<double>(options_.steps);
    switch (options_.shape) {
      case schedule_shape::linear: {
        const auto risen = static_cast<double>((options_.last - options_.first) * s);
        return options_.first + half_to_even(risen / steps);
      }
      case schedule_shape::cosine:  // in the order of the source: where the cosine is 1/2, the last bit decides
        return options_.last + left(std::cos(std::numbers::pi * static_cast<double>(s) / (2 * steps)));
      case schedule_shape::exponential: {
        const index_t period = (std::max<index_t>)(1, options_.steps / 300);
        return options_.last + left(std::pow(0.99, static_cast<double>((std::max<index_t>)(step, 0) / period)));
      }
      case schedule_shape::doubling:
        return doubled(s);
    }
    return options_.last;
  }

private:
  static index_t half_to_even(double v) noexcept { return static_cast<index_t>(std::nearbyint(v)); }

  /// This share of the way back from last to first.
  index_t left(double share) const noexcept {
    return half_to_even(static_cast<double>(options_.first - options_.last) * share);
  }

  index_t doubled(index_t s) const noexcept {
    index_t count = 5;
    while ((index_t{1} << (count - 1)) < largest()) ++count;
    const index_t passed = (std::min)(count * s / options_.steps, count - 1);
    const index_t doublings = options_.first <= options_.last ? passed : count - 1 - passed;
    return (std::clamp)(index_t{1} << doublings, smallest(), largest());
  }

  options options_;
};

/// A rule whose k follows a schedule in training.
template <FloatOrDouble Scalar, typename Inner>
class scheduled_rule : public rule_decorator<Scalar, Inner> {
  using base = rule_decorator<Scalar, Inner>;

public:
  scheduled_rule(Inner inner, top_k_schedule schedule) : base(std::move(inner)), schedule_(schedule) {}

  index_t top_k() const { return base::top_k(); }
  index_t top_k(const routing_context<Scalar>& context) const {
    return context.training ? schedule_(context.step) : base::top_k(context);
  }

  void validate(index_t experts) const {
    base::validate(experts);
    if (schedule_.largest() > experts)
      throw_invalid("the schedule of k goes up to ", schedule_.largest(), ", the router has E = ", experts);
  }

private:
  top_k_schedule schedule_;
};

/// sluice::smoe_dropout_router<float> router{64, 16, {.schedule = {{.first = 1, .last = 16, .steps = 10000}}}};
template <FloatOrDouble Scalar, typename GateType = frozen_gate<linear_gate<Scalar>>>
class smoe_dropout_router : public token_choice_router<GateType, scheduled_rule<Scalar, softmax_rule<Scalar>>> {
  using base = token_choice_router<GateType, scheduled_rule<Scalar, softmax_rule<Scalar>>>;

public:
  struct options {
    top_k_schedule schedule = {{}};
    index_t top_k = 0;  ///< at inference; 0 is the schedule's largest
  };

  /// A linear gate with bias, frozen.
  smoe_dropout_router(index_t inputs, index_t experts, options o)
    requires std::same_as<GateType, frozen_gate<linear_gate<Scalar>>>
      : smoe_dropout_router(GateType(linear_gate<Scalar>(inputs, experts, {.bias = true})), o) {}
  explicit smoe_dropout_router(GateType gate, options o)
      : base(std::move(gate), {softmax_rule<Scalar>({.top_k = o.top_k == 0 ? o.schedule.largest() : o.top_k,
                                                     .weights = weighting::post,
                                                     .constant_weight = true}),
                               o.schedule}) {}
};

static_assert(explain_choice_rule<scheduled_rule<float, softmax_rule<float>>, float>());
static_assert(DifferentiableRouter<smoe_dropout_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
