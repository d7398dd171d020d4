/// What every routing plan must be, whatever the tokens hold: the conformance kit's properties of single forward calls.
#pragma once

#include <sluice/train/conformance/router_probe.hpp>

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA::detail {

inline constexpr const char* not_causal = "choices depend on other tokens of the batch (causal = false)";

template <typename Router>
property_result zero_tokens(router_probe<Router>& probe) {
  const auto b = probe.pick({});
  typename router_probe<Router>::tape t;
  const auto r = probe.step(b, b.context(true), t);
  if (t.plan.tokens() != 0) return fail("the plan has " + std::to_string(t.plan.tokens()) + " tokens");
  zero_gradients(probe.layer.bank());
  for (const auto g : parameter_gradients(probe.layer))
    if (g != 0) return fail("a gradient of the router is not zero");
  return pass("an empty plan");
}

/// What is wrong with a plan, if anything; throws if a token has an expert twice.
template <typename Plan>
std::optional<std::string> fault_of(const Plan& plan, index_t tokens, index_t experts) {
  if (plan.tokens() != tokens)
    return "the plan has " + std::to_string(plan.tokens()) + " tokens of " + std::to_string(tokens);
  if (plan.experts() != experts)
    return "the plan has " + std::to_string(plan.experts()) + " experts of " + std::to_string(experts);
  if constexpr (requires { plan.validate(); }) plan.validate();
  return std::nullopt;
}

template <typename Router>
property_result valid_plans(router_probe<Router>& probe) {
  using scalar = typename Router::scalar;
  const auto trial = [&](const char* name, const auto& b, scalar factor) -> std::optional<std::string> {
    for (const bool training : {false, true}) {
      typename router_probe<Router>::workspace ws;
      const matrix<scalar> x = b.x * factor;
      const matrix<scalar> y = probe.infer(x, b.context(training), ws);
      if (const auto fault = fault_of(ws.plan, x.rows(), probe.layer.experts()))
        return std::string(name) + ": " + *fault;
      if (any_nan(y.data(), y.size())) return std::string(name) + ": an output is NaN";
    }
    return std::nullopt;
  };
  const auto all = probe.everything();
  for (const auto& fault :
       {trial("one token", probe.pick({0}), 1), trial("random tokens", all, 1), trial("tokens of zeros", all, 0),
        trial("huge tokens", all, scalar(1e6)), trial("equal tokens", probe.copies_of_token_0(), 1)})
    if (fault) return fail(*fault);
  return pass("for one token, random, equal and huge tokens, and tokens of zeros");
}

template <typename Router>
property_result equal_tokens(router_probe<Router>& probe) {
  if (!probe.causal) return skip(not_causal);
  const auto b = probe.copies_of_token_0();
  for (const bool zeros : {false, true}) {  // tokens of zeros give many routers nothing but ties
    typename router_probe<Router>::workspace ws;
    probe.infer(b.x * typename Router::scalar(zeros ? 0 : 1), b.context(false), ws);
    for (index_t t = 1; t < b.x.rows(); ++t)
      if (!equal_bits(words_about(ws.plan, t), words_about(ws.plan, 0)))
        return fail("token " + std::to_string(t) + " is routed unlike its copy, token 0; a router that looks at other " +
                    "tokens or at places says `static constexpr bool causal = false`");
  }
  return pass(std::to_string(b.x.rows()) + " copies of a token, one route");
}

template <typename Router>
property_result permutation(router_probe<Router>& probe) {
  if (!probe.causal) return skip(not_causal);
  using scalar = typename Router::scalar;
  const std::vector<index_t> order = shuffled_rows(probe.tokens(), probe.options.seed + 4);
  const auto plain = probe.everything();
  const auto shuffled = probe.pick(order);
  typename router_probe<Router>::workspace a, b;
  probe.infer(plain.x, plain.context(false), a);
  probe.infer(shuffled.x, shuffled.context(false), b);
  double worst = 0;
  for (index_t t = 0; t < probe.tokens(); ++t) {
    const auto here = words_about(b.plan, t);
    const auto there = words_about(a.plan, order[static_cast<std::size_t>(t)]);
    if (here.size() != there.size()) return fail("a token has another number of experts at another place");
    worst = (std::max)(worst, largest_difference(here.data(), there.data(), static_cast<index_t>(here.size())));
  }
  // Scores are sums of D products, and their rounding may depend on a token's place in a block of rows.
  const double rounding =
      static_cast<double>(probe.layer.inputs()) * static_cast<double>(std::numeric_limits<scalar>::epsilon());
  return judge("routes at two places", worst, 64 * rounding);
}

/// One number of token 1 becomes `bad`. Causal routers: no other token changes by a bit. All: no other token turns into
/// NaN.
template <typename Router>
property_result spoiled_token(router_probe<Router>& probe, typename Router::scalar bad, bool becomes_nan) {
  using scalar = typename Router::scalar;
  const index_t spoiled = 1;
  const auto b = probe.everything();
  matrix<scalar> x = b.x;
  x(spoiled, x.cols() / 2) = bad;
  for (const bool training : {false, true}) {
    const auto context = b.context(training);
    typename router_probe<Router>::workspace ws;
    const matrix<scalar> before = probe.infer(b.x, context, ws);
    const matrix<scalar> after = probe.infer(x, context, ws);
    if (const auto fault = fault_of(ws.plan, x.rows(), probe.layer.experts())) return fail(*fault);
    if (becomes_nan && !context.is_padding(spoiled))
      for (index_t c = 0; c < after.cols(); ++c)
        if (!is_nan(after(spoiled, c))) return fail("its output is a number");
    for (index_t t = 0; t < x.rows(); ++t) {
      if (t == spoiled) continue;
      if (probe.causal && !equal_bits(&before(t, 0), &after(t, 0), after.cols()))
        return fail("token " + std::to_string(t) + " changes with it");
      if (any_nan(&after(t, 0), after.cols())) return fail("token " + std::to_string(t) + " becomes NaN with it");
    }
  }
  return pass(probe.causal ? "no other token changes by a bit" : "other tokens stay numbers");
}

template <typename Router>
property_result conservation(router_probe<Router>& probe) {
  if constexpr (requires(typename Router::plan plan) { plan.dropped(); }) {
    const auto b = probe.everything();
    const auto context = b.context(true);
    typename router_probe<Router>::workspace ws;
    probe.infer(b.x, context, ws);
    const auto& plan = ws.plan;
    std::vector<std::pair<index_t, index_t>> pairs;
    for (index_t i = 0; i < plan.size(); ++i) pairs.emplace_back(plan.token(i), plan.expert(i));
    for (const auto& d : plan.dropped()) {
      if (d.token < 0 || d.token >= plan.tokens() || d.expert < 0 || d.expert >= plan.experts())
        return fail("a dropped choice is outside T and E");
      // Slots are counted in each group; with one group they are those of the plan.
      if (context.group_count() == 1 && d.slot < plan.load(d.expert))
        return fail("a dropped choice has slot " + std::to_string(d.slot) + " of expert " + std::to_string(d.expert) +
                    ", who has " + std::to_string(plan.load(d.expert)) + " rows");
      pairs.emplace_back(d.token, d.expert);
    }
    std::sort(pairs.begin(), pairs.end());
    if (std::adjacent_find(pairs.begin(), pairs.end()) != pairs.end()) return fail("a choice is listed twice");
    if constexpr (requires { ws.router.choices.asked; }) {
      const auto asked = std::count(ws.router.choices.asked.begin(), ws.router.choices.asked.end(), 1);
      if (asked != static_cast<std::ptrdiff_t>(pairs.size()))
        return fail(std::to_string(asked) + " choices were asked for, " + std::to_string(pairs.size()) +
                    " are accounted for");
    }
    return pass(std::to_string(plan.size()) + " kept, " + std::to_string(plan.dropped().size()) + " dropped");
  } else {
    return skip("a plan of this kind drops nothing");
  }
}

}  // namespace sluice::inline SLUICE_ISA::detail
