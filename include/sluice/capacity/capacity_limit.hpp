/// How many tokens an expert takes: its capacity C, from the T tokens of a group, k choices a token and E experts.
///
///   vmoe                C = ceil (or round half to even) of cf k T / E, then raised to a multiple   arXiv:2106.05974
///   switch_transformer  C = ceil(cf T / E)                                                          arXiv:2101.03961
///   gshard              C = max(minimum, ceil(cf k T / E))                                          arXiv:2006.16668
///   megatron            C = max(minimum, ceil((k T / E) cf)); DeepSpeed too: rounded in another order than gshard
///   st_moe              C = max(minimum, min(T, trunc(cf T / E))), minimum 4                        arXiv:2202.08906
///   tutel               C = k trunc(cf ceil(T / E)), then raised to a multiple; cf = 0: the largest load, nothing is
///                       dropped; cf < 0: at most that and k trunc(-cf ceil(T / E))                  arXiv:2206.03382
///   fastmoe             C = floor(ceil(cf T) k / E)                                                 arXiv:2103.13262
///   moe_plus_plus       C = cf k T times a share that differs: FFN, zero-computation experts        arXiv:2410.07348
///   xmoe                C = max(minimum, ceil((T / E) cf)), minimum 8: megatron's for k = 1, whatever k is
///                                                                                               arXiv:2403.18926
///   token_fraction      C = ceil(cf T): EvoMoE at evaluation, FastMoE's Switch gate              arXiv:2112.14397
///   fixed               C as given
///
/// T counts a group's tokens without padding. Training and inference may have factors of their own. Experts that cost
/// nothing may have no limit (without_limit); E then counts the others. Nothing is clamped silently: C < 1 throws
/// std::invalid_argument with the numbers. Groups in which no choice is made are not asked.
#pragma once

#include <sluice/core/choices.hpp>
#include <sluice/core/numeric.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// A number that may differ between training and inference: {1.25, 2.0}, or 1.25 for both.
struct capacity_factor {
  double training;
  double inference;

  constexpr capacity_factor(double both) : training(both), inference(both) {}
  constexpr capacity_factor(double in_training, double in_inference) : training(in_training), inference(in_inference) {}
};

enum class capacity_rounding { up, half_to_even, down };

/// What a limit is computed from.
struct capacity_request {
  index_t tokens = 0;
  index_t top_k = 1;
  index_t experts = 1;
  bool training = false;
  index_t largest_load = 0;  ///< choices for the most wanted expert; only tutel's forms read it
};

class capacity_limit {
public:
  using rounding = capacity_rounding;

  static capacity_limit vmoe(capacity_factor cf, rounding direction = rounding::up, index_t multiple_of = 4) {
    return capacity_limit(form::choices, cf, direction).raised_to_multiple(multiple_of);
  }
  static capacity_limit switch_transformer(capacity_factor cf) {
    return capacity_limit(form::tokens, cf, rounding::up);
  }
  static capacity_limit gshard(capacity_factor cf, index_t minimum = 0) {
    return capacity_limit(form::choices, cf, rounding::up).at_least(minimum);
  }
  static capacity_limit megatron(capacity_factor cf, index_t minimum = 0) {
    return capacity_limit(form::mean_load, cf, rounding::up).at_least(minimum);
  }
  static capacity_limit st_moe(capacity_factor cf, index_t minimum = 4) {
    capacity_limit limit = capacity_limit(form::tokens, cf, rounding::down).at_least(minimum);
    limit.at_most_tokens_ = true;
    return limit;
  }
  static capacity_limit tutel(capacity_factor cf, index_t multiple_of = 1) {
    return capacity_limit(form::tutel, cf, rounding::down).raised_to_multiple(multiple_of);
  }
  static capacity_limit fastmoe(capacity_factor cf) { return capacity_limit(form::fastmoe, cf, rounding::down); }
  static capacity_limit moe_plus_plus(capacity_factor cf, double tau, index_t ffn_experts,
                                      index_t zero_computation_experts, rounding direction = rounding::up) {
    if (ffn_experts < 0 || zero_computation_experts < 0)
      throw_invalid("moe_plus_plus needs counts of experts >= 0, not ", ffn_experts, " and ", zero_computation_experts);
    std::vector<double> weights(static_cast<std::size_t>(ffn_experts), tau);
    weights.resize(static_cast<std::size_t>(ffn_experts + zero_computation_experts), 1.0);
    return capacity_limit(form::choices, cf, direction).shared_by(std::move(weights));
  }
  static capacity_limit xmoe(capacity_factor cf, index_t minimum = 8) {
    return capacity_limit(form::mean_tokens, cf, rounding::up).at_least(minimum);
  }
  static capacity_limit token_fraction(capacity_factor cf) { return capacity_limit(form::fraction, cf, rounding::up); }
  static capacity_limit fixed(index_t training, index_t inference) {
    return {form::fixed, {static_cast<double>(training), static_cast<double>(inference)}, rounding::down};
  }
  static capacity_limit fixed(index_t count) { return fixed(count, count); }

  /// The limit of expert e becomes proportional to weights[e] instead of 1/E each: cf k T weights[e] / sum of the
  /// weights. Not for fixed, tutel, fastmoe and token_fraction.
  capacity_limit shared_by(std::vector<double> weights) const {
    if (form_ == form::fixed || form_ == form::tutel || form_ == form::fastmoe || form_ == form::fraction)
      throw_invalid("this capacity formula has no shares that could differ between experts");
    if (!unlimited_.empty()) throw_invalid("a capacity has either shares or experts without a limit");
    capacity_limit limit = *this;
    limit.weight_sum_ = 0;
    for (const double weight : weights) {
      if (!is_positive(weight))
        throw_invalid("an expert's share of the capacity must be positive and finite, not ", weight);
      limit.weight_sum_ += weight;
    }
    limit.weights_ = std::move(weights);
    return limit;
  }
  capacity_limit at_least(index_t minimum) const {
    if (minimum < 0) throw_invalid("a smallest capacity cannot be ", minimum);
    capacity_limit limit = *this;
    limit.minimum_ = minimum;
    return limit;
  }
  /// Raised to a multiple of this many slots; 0 and 1 leave C as it is.
  capacity_limit raised_to_multiple(index_t multiple_of) const {
    if (multiple_of < 0) throw_invalid("a capacity cannot be a multiple of ", multiple_of);
    capacity_limit limit = *this;
    limit.multiple_of_ = multiple_of;
    return limit;
  }

  /// These experts take whoever asks, and the capacity of the others is computed as if there were no more than those.
  /// Not together with shares.
  capacity_limit without_limit(std::vector<index_t> experts) const {
    if (!weights_.empty()) throw_invalid("a capacity has either shares or experts without a limit");
    capacity_limit limit = *this;
    std::sort(experts.begin(), experts.end());
    experts.erase(std::unique(experts.begin(), experts.end()), experts.end());
    if (!experts.empty() && experts.front() < 0) throw_invalid("no expert has the number ", experts.front());
    limit.unlimited_ = std::move(experts);
    return limit;
  }

  bool differs_between_experts() const noexcept { return !weights_.empty() || !unlimited_.empty(); }
  bool reads_load() const noexcept { return form_ == form::tutel; }

  /// C of an expert. Throws std::invalid_argument if C < 1, or if there are shares for another number of experts.
  index_t of(const capacity_request& r, index_t expert = 0) const {
    const index_t capacity = at(r, expert);
    if (capacity < 1)
      throw_invalid("capacity ", capacity, " is below 1: T = ", r.tokens, ", k = ", r.top_k, ", E = ", r.experts,
                    ", factor = ", r.training ? factor_.training : factor_.inference);
    return capacity;
  }
  /// The same, which may be below 1: for bounds.
  index_t at(const capacity_request& r, index_t expert = 0) const {
    if (!weights_.empty() && static_cast<index_t>(weights_.size()) != r.experts)
      throw_invalid("the capacity has shares for ", weights_.size(), " experts, the router has E = ", r.experts);
    if (!unlimited_.empty() && unlimited_.back() >= r.experts)
      throw_invalid("expert ", unlimited_.back(), " has no limit, the router has E = ", r.experts);
    if (std::binary_search(unlimited_.begin(), unlimited_.end(), expert)) return r.tokens;
    capacity_request limited = r;
    limited.experts -= static_cast<index_t>(unlimited_.size());
    const double factor = r.training ? factor_.training : factor_.inference;
    index_t capacity = (std::max)(formula(limited, factor, expert), minimum_);
    if (capacity >= 1 && multiple_of_ > 1) capacity += (multiple_of_ - capacity % multiple_of_) % multiple_of_;
    return capacity;
  }

private:
  enum class form { fixed, tokens, choices, mean_load, mean_tokens, tutel, fastmoe, fraction };

  capacity_limit(form f, capacity_factor cf, rounding direction) : form_(f), round_(direction), factor_(cf) {
    for (const double factor : {cf.training, cf.inference})
      if (f == form::tutel ? !is_finite(factor) : f == form::fixed ? !(factor >= 1) : !is_positive(factor))
        throw_invalid("a capacity factor of ", factor, " makes no capacity");
  }

  // Factors far beyond any batch are refused with infinity: a capacity has to fit an index.
  static bool is_finite(double v) noexcept { return !is_nan(v) && (std::abs)(v) <= 1e9; }
  static bool is_positive(double v) noexcept { return is_finite(v) && v > 0; }

  // Where the exact value is an integer, the last bit decides about a slot. Under -ffast-math a compiler would reorder
  // these operations or divide by multiplying; through volatile it cannot.
  static double product(double a, double b) noexcept {
    const volatile double result = a * b;
    return result;
  }
  static double quotient(double a, double b) noexcept {
    const volatile double divisor = b;
    const volatile double result = a / divisor;
    return result;
  }

  index_t rounded(double v) const noexcept {
    const double floor = std::floor(v);
    const double rest = v - floor;
    const bool is_odd = std::fmod(floor, 2) != 0;
    const bool up =
        round_ == rounding::up ? rest > 0 : round_ == rounding::half_to_even && (rest > 0.5 || (rest == 0.5 && is_odd));
    return static_cast<index_t>(floor) + (up ? 1 : 0);
  }

  index_t formula(const capacity_request& r, double factor, index_t expert) const {
    const auto tokens = static_cast<double>(r.tokens);
    const auto choices = static_cast<double>(r.tokens * r.top_k);
    const double weight = weights_.empty() ? 1 : weights_[static_cast<std::size_t>(expert)];
    const double experts = weights_.empty() ? static_cast<double>(r.experts) : weight_sum_;
    switch (form_) {
      case form::fixed:
        return static_cast<index_t>(factor);
      case form::tokens: {
        const index_t capacity = rounded(quotient(product(product(tokens, factor), weight), experts));
        return at_most_tokens_ ? (std::min)(capacity, r.tokens) : capacity;
      }
      case form::choices:
        return rounded(quotient(product(product(choices, factor), weight), experts));
      case form::mean_load:
        return rounded(product(quotient(product(choices, weight), experts), factor));
      case form::mean_tokens:
        return rounded(product(quotient(product(tokens, weight), experts), factor));
      case form::fraction:
        return rounded(product(tokens, factor));
      case form::fastmoe:
        return static_cast<index_t>(std::ceil(product(tokens, factor))) * r.top_k / r.experts;
      case form::tutel: {
        const auto mean_load = static_cast<double>((r.tokens + r.experts - 1) / r.experts);
        const index_t bound = r.top_k * static_cast<index_t>(std::trunc((std::abs)(factor) * mean_load));
        return factor > 0 ? bound : factor < 0 ? (std::min)(bound, r.largest_load) : r.largest_load;
      }
    }
    return 0;
  }

  form form_;
  rounding round_;
  capacity_factor factor_;
  index_t minimum_ = 0;
  index_t multiple_of_ = 0;
  bool at_most_tokens_ = false;
  double weight_sum_ = 0;
  std::vector<double> weights_;
  std::vector<index_t> unlimited_;  // ascending
};

/// The limits of all experts for one group: what choice_table::serve() asks.
class group_limits {
public:
  /// For the choices order[first...] of the group.
  template <typename Scalar>
  group_limits(const capacity_limit& limit, choice_table<Scalar>& choices, index_t first, token_range group,
               index_t experts, const routing_context<Scalar>& context)
      : limit_(&limit), request_{0, choices.top_k, experts, context.training, 0} {
    for (index_t t = group.begin; t < group.end; ++t) request_.tokens += !context.is_padding(t);
    if (limit.reads_load()) {
      choices.queue.assign(experts, 0);
      for (index_t i = first; i < choices.order.size(); ++i) ++choices.queue[choices.expert[choices.order[i]]];
      for (const index_t load : choices.queue) request_.largest_load = (std::max)(request_.largest_load, load);
    }
    const index_t different = limit.differs_between_experts() ? experts : 1;
    for (index_t e = 0; e < different; ++e) capacity_ = limit.of(request_, e);  // throws here rather than on the way
  }

  index_t operator()(index_t expert) const {
    return limit_->differs_between_experts() ? limit_->of(request_, expert) : capacity_;
  }

private:
  const capacity_limit* limit_;
  capacity_request request_;
  index_t capacity_ = 0;
};

}  // namespace sluice::inline SLUICE_ISA
