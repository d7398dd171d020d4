/// check_capacity: every promise that a capacity policy makes, tested on yours in one call.
///
///   const conformance_report report = check_capacity(position_capacity(capacity_limit::fixed(3)));
///   check_capacity<float>(my_policy{}, {.experts = 16, .top_k = 4});
///
/// The policy serves random choices: k experts a token, falling weights with ties, some not asked for. Tested are:
/// every choice that asked is served once and no other; kept slots of an expert are 0, 1, ... in the order of serving,
/// refused ones lie at or past its limit and so behind them; a token's choices are served in the order of its ranks; no
/// tokens, and tokens that ask for nothing; groups on their own; equal tables for equal calls; experts and weights
/// stay; no randomness in inference; if the policy is causal, later tokens take no slot from earlier ones.
#pragma once

#include <sluice/core/choices.hpp>
#include <sluice/train/conformance/batch.hpp>
#include <sluice/train/conformance/report.hpp>

#include <cmath>
#include <string>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct capacity_check_options {
  std::uint64_t seed = 1;
  index_t tokens = 23;
  index_t experts = 5;
  index_t top_k = 2;
};

namespace detail {

template <typename Policy, FloatOrDouble Scalar>
class capacity_probe {
public:
  using table = choice_table<Scalar>;
  static constexpr bool causal = Policy::causal;

  capacity_probe(const Policy& p, const capacity_check_options& o) : options(o), policy(p) {
    if (o.tokens < 4 || o.top_k < 1 || o.top_k > o.experts)
      throw_invalid("check_capacity needs at least 4 tokens and 1 <= k <= E, not ", o.tokens, ", k = ", o.top_k,
                    ", E = ", o.experts);
  }

  /// Distinct experts, of which low ones are wanted more; nine choices of ten are asked for.
  table drawn(index_t tokens, bool asks = true) const {
    table t;
    t.reset(tokens, options.top_k);
    const random_source random(options.seed);
    index_t draw = 0;
    const auto uniform = [&] { return random.uniform(random_site::user_site, draw++); };
    for (index_t token = 0; token < tokens; ++token) {
      std::vector<index_t> left = ascending_rows(options.experts);
      Scalar weight = 1;
      for (index_t pair = token * t.top_k; pair < (token + 1) * t.top_k; ++pair) {
        const auto at = static_cast<std::ptrdiff_t>(static_cast<double>(left.size()) * uniform() * uniform());
        t.expert[pair] = left[static_cast<std::size_t>(at)];
        left.erase(left.begin() + at);
        weight *= static_cast<Scalar>(std::ceil(uniform() * 8) / 8);
        t.weight[pair] = weight;
        t.asked[pair] = uniform() < 0.9 && asks;
      }
      t.priority[token] = t.weight[token * t.top_k];
    }
    return t;
  }

  routing_context<Scalar> context(bool training, std::uint64_t draws = 0) const {
    routing_context<Scalar> c;
    c.training = training;
    c.random = random_source(options.seed + 1, draws);
    return c;
  }
  table serve(table t, const routing_context<Scalar>& c) const {
    policy.serve(t, token_range{0, t.tokens}, options.experts, c);
    return t;
  }
  table serve(bool training) const { return serve(drawn(options.tokens), context(training)); }

  capacity_check_options options;
  Policy policy;
};

/// Whether two tables agree in what was served, kept and given as slots.
template <typename Scalar>
bool equally_served(const choice_table<Scalar>& a, const choice_table<Scalar>& b) {
  if (!(a.order == b.order) || !(a.kept == b.kept)) return false;
  for (const index_t pair : a.order)
    if (a.slot[pair] != b.slot[pair]) return false;
  return true;
}

template <typename Scalar>
property_result served_once(const choice_table<Scalar>& t) {
  std::vector<int> times(static_cast<std::size_t>(t.tokens * t.top_k), 0);
  for (const index_t pair : t.order) {
    if (pair < 0 || pair >= t.tokens * t.top_k) return fail("it serves a choice that there is not");
    ++times[static_cast<std::size_t>(pair)];
  }
  for (index_t pair = 0; pair < t.tokens * t.top_k; ++pair) {
    const int served = times[static_cast<std::size_t>(pair)];
    const std::string which =
        "choice " + std::to_string(pair % t.top_k) + " of token " + std::to_string(pair / t.top_k);
    if (t.asked[pair] && served != 1) return fail(which + " is served " + std::to_string(served) + " times");
    if (!t.asked[pair] && (served != 0 || t.kept[pair])) return fail(which + " did not ask and is served");
  }
  return pass("every choice that asked, and no other");
}

template <typename Scalar>
property_result slots_in_order(const choice_table<Scalar>& t, index_t experts) {
  std::vector<index_t> kept(static_cast<std::size_t>(experts), 0);
  std::vector<index_t> rank(static_cast<std::size_t>(t.tokens), -1);
  for (const index_t pair : t.order) {
    const auto e = static_cast<std::size_t>(t.expert[pair]);
    if (t.kept[pair] && t.slot[pair] != kept[e]++)
      return fail("a kept choice of expert " + std::to_string(e) + " is in slot " + std::to_string(t.slot[pair]));
    index_t& last = rank[static_cast<std::size_t>(pair / t.top_k)];
    if (pair % t.top_k <= last) return fail("ranks of token " + std::to_string(pair / t.top_k) + " do not ascend");
    last = pair % t.top_k;
  }
  for (const index_t pair : t.order)
    if (!t.kept[pair] && t.slot[pair] < kept[static_cast<std::size_t>(t.expert[pair])])
      return fail("a refused choice lies in a kept one's slot");
  return pass("0, 1, ... where kept, behind them where refused");
}

template <typename Probe>
property_result nothing_to_serve(const Probe& probe) {
  const auto none = probe.serve(probe.drawn(0), probe.context(true));
  const auto silent = probe.serve(probe.drawn(probe.options.tokens, false), probe.context(true));
  return none.order.empty() && silent.order.empty() ? pass("no tokens, and no token that asks")
                                                    : fail("something is served where nothing asks");
}

/// Two groups, served one after another, each as it would be alone.
template <typename Probe>
property_result groups_alone(const Probe& probe) {
  const auto all = probe.drawn(probe.options.tokens);
  const index_t k = all.top_k;
  const index_t border = probe.options.tokens / 2;
  const auto context = probe.context(false);
  auto both = all;
  probe.policy.serve(both, token_range{0, border}, probe.options.experts, context);
  probe.policy.serve(both, token_range{border, all.tokens}, probe.options.experts, context);
  auto first = all;
  probe.policy.serve(first, token_range{0, border}, probe.options.experts, context);
  auto second = all;
  probe.policy.serve(second, token_range{border, all.tokens}, probe.options.experts, context);
  for (index_t pair = 0; pair < all.tokens * k; ++pair) {
    const auto& alone = pair < border * k ? first : second;
    if (both.kept[pair] != alone.kept[pair]) return fail("what a group keeps depends on another group");
  }
  return pass("each group keeps what it keeps alone");
}

template <typename Probe>
property_result table_stays(const Probe& probe) {
  const auto before = probe.drawn(probe.options.tokens);
  const auto after = probe.serve(before, probe.context(true));
  return before.expert == after.expert && before.weight == after.weight && before.asked == after.asked
             ? pass("experts, weights and wishes stay")
             : fail("an expert, a weight or a wish changed");
}

template <typename Probe>
property_result no_slot_for_later(const Probe& probe) {
  if (!Probe::causal) return skip("the policy is not causal");
  const auto all = probe.serve(false);
  for (index_t tokens = 1; tokens < probe.options.tokens; ++tokens) {
    const auto part = probe.serve(probe.drawn(tokens), probe.context(false));
    for (index_t pair = 0; pair < tokens * all.top_k; ++pair)
      if (part.kept[pair] != all.kept[pair])
        return fail("token " + std::to_string(pair / all.top_k) + " is kept or not by what comes after it");
  }
  return pass("what a token keeps does not depend on later ones");
}

}  // namespace detail

/// Throws std::invalid_argument if the options do not fit; what the policy does wrong is in the report.
template <std::floating_point Scalar = double, CapacityPolicy<Scalar> Policy>
conformance_report check_capacity(const Policy& policy, const capacity_check_options& options = {}) {
  const detail::capacity_probe<Policy, Scalar> probe(policy, options);
  conformance_report report;
  for (const bool training : {false, true}) {
    const std::string when = training ? " in training" : "";
    report.add("served once" + when, [&] { return detail::served_once(probe.serve(training)); });
    report.add("slots" + when, [&] { return detail::slots_in_order(probe.serve(training), options.experts); });
    report.add("repetition" + when, [&] {
      return detail::equally_served(probe.serve(training), probe.serve(training)) ? detail::pass("equal tables")
                                                                                  : detail::fail("another table");
    });
  }
  report.add("nothing to serve", [&] { return detail::nothing_to_serve(probe); });
  report.add("groups on their own", [&] { return detail::groups_alone(probe); });
  report.add("the table stays", [&] { return detail::table_stays(probe); });
  report.add("inference draws nothing", [&] {
    const auto all = probe.drawn(options.tokens);
    return detail::equally_served(probe.serve(all, probe.context(false)), probe.serve(all, probe.context(false, 7)))
               ? detail::pass("equal tables for two random sources")
               : detail::fail("another random source gives another table");
  });
  report.add("later tokens", [&] { return detail::no_slot_for_later(probe); });
  return report;
}

}  // namespace sluice::inline SLUICE_ISA
