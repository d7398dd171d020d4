/// How the engine of token choice calls the parts of a rule that it may leave out (router/choice_rule.hpp): each has a
/// default here, and nowhere else.
#pragma once

#include <sluice/core/choices.hpp>
#include <sluice/kernel/order.hpp>
#include <sluice/router/choice_rule.hpp>

namespace sluice::inline SLUICE_ISA::detail {

struct no_rule_tape {};

template <typename Rule>
struct rule_tape_of {
  using type = no_rule_tape;
};
template <HasTape Rule>
struct rule_tape_of<Rule> {
  using type = typename Rule::tape;
};
template <typename Rule>
using rule_tape = typename rule_tape_of<Rule>::type;

/// Experts a token where the call leaves k open.
template <typename Rule, typename Scalar>
index_t top_k_of(const Rule& rule, const routing_context<Scalar>& context) {
  if constexpr (requires { rule.top_k(context); })
    return rule.top_k(context);
  else
    return rule.top_k();
}

/// Whether experts are assigned to all tokens of a group together, rather than chosen token by token.
template <typename Rule, typename Scalar>
bool assigns(const Rule& rule, const routing_context<Scalar>& context) {
  if constexpr (SaysWhenItAssigns<Rule, Scalar>)
    return rule.assigns(context);
  else
    return CanAssignExperts<Rule, Scalar>;
}

template <typename Rule, typename Scalar>
void assign(const Rule& rule, const choice_batch<Scalar>& batch, choice_table<Scalar>& choices, rule_tape<Rule>& tape) {
  if constexpr (CanAssignWithTape<Rule, Scalar>)
    rule.assign(batch, choices, tape);
  else if constexpr (CanAssignExperts<Rule, Scalar>)
    rule.assign(batch, choices);
}

/// Room for whatever a call may show, of which it may show nothing. A coupling has the same.
template <typename Rule, typename Scalar, typename Tape>
void make_room([[maybe_unused]] const Rule& rule, [[maybe_unused]] const choice_call<Scalar>& call,
               [[maybe_unused]] Tape& tape) {
  if constexpr (requires { rule.reserve(call, tape); }) rule.reserve(call, tape);
}

/// How many experts the rule chose for the token; none if all it can do is assign.
template <typename Rule, typename Scalar>
index_t choose(const Rule& rule, const choice_row<Scalar>& row, index_t* ids) {
  if constexpr (CanChooseExperts<Rule, Scalar>)
    return rule.choose(row, ids);
  else
    return 0;
}

template <typename Rule, typename Scalar>
Scalar priority_of(const Rule& rule, const choice_row<Scalar>& row) {
  if constexpr (requires { rule.priority(row); })
    return rule.priority(row);
  else
    return row.scores[kernel::arg_max(row.scores, row.experts)];
}

/// Whether weights are made of the logits before the noise, which then have their gradient.
template <typename Rule>
bool weighs_clean(const Rule& rule) {
  if constexpr (requires { rule.weighs_clean(); })
    return rule.weighs_clean();
  else
    return false;
}

template <typename Rule, typename Scalar>
bool keeps(const Rule& rule, const choice_row<Scalar>& row, index_t rank, Scalar weight) {
  if constexpr (requires { rule.keeps(row, rank, weight); })
    return rule.keeps(row, rank, weight);
  else
    return true;
}

}  // namespace sluice::inline SLUICE_ISA::detail
