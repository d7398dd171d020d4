/// The rule of a token-choice router: how one token's row of logits becomes experts and weights.
///
///   top_k()                            experts a token, unless the call says otherwise
///   score(row, scores)                 fills scores [E], kept for weigh and backward
///   choose(row, ids) -> count          distinct experts, best first, at most row.k
///   weigh(row, ids, weights)           combine weights of what was chosen
///   backward(row, weighed, dlogits)    adds the gradient of the weights into dlogits [E]
/// and, where it wants,
///   top_k(context)                     in place of top_k() where a call leaves k open: schedules of k
///   validate(E), validate_call(call)   throw if the options, or a call's k or context, do not fit
///   keeps(row, rank, weight)           thins out choices
///   priority(row)                      for capacity that serves sure tokens first; without it the largest score
///   weighs_clean()                     true: weights are made of row.clean, whose gradients dlogits then are
///   after_step(statistics)             for what is learned without gradients
///   visit_parameters                   if it has parameters; their names begin with "rule."
///   causal                             false if the choice for a token depends on others
/// A rule that chooses for all tokens together (Sinkhorn, balanced assignment, random partitions) has instead of choose
///   assign(batch, choices)             writes the experts of batch.routable into choices.ids(token)
///   assign(batch, choices, tape)       the same with memory of its own between calls, if it has a member type `tape`
///   reserve(call, tape)                room in it for any group of such a call, once before the first
///   assigns(context)                   false: this call goes token by token, so there is a choose as well
/// An assignment that has weights leaves them in choices.weights(token): weigh finds them where it writes its own.
/// One that says how sure tokens are, in place of priority(row), writes choices.priority[token] and has a static member
/// assigns_priority.
/// Where their gradient is a matter of all tokens too, it is that of
///   assign_backward(batch, choices, dweights, tape, dlogits)      dweights(t, j) is that of choices.ids(t)[j]
/// which adds into dlogits [T,E]. It is called once a group, before backward of its tokens.
///
/// All are const but after_step. assign and assign_backward run once a group, all others for many tokens at once.
/// A row tells all that is known about its token: the context (step, ids, task) too, so that a mask over experts or a
/// schedule is a rule. Padding and tokens with NaN among their logits are not shown to a rule; infinities are.
/// ids given to weigh and backward may be fewer than were chosen, where weights are computed after a capacity drop.
/// If yours is refused: static_assert(sluice::explain_choice_rule<my_rule, float>()).
#pragma once

#include <sluice/core/choices.hpp>
#include <sluice/core/concepts.hpp>
#include <sluice/core/context.hpp>
#include <sluice/core/types.hpp>

#include <concepts>
#include <span>

namespace sluice::inline SLUICE_ISA {

/// What is the same for all tokens of a call.
template <FloatOrDouble Scalar>
struct choice_call {
  const routing_context<Scalar>& context;
  index_t tokens;   ///< T
  index_t experts;  ///< E
  index_t k;        ///< experts a token that this call asks for
};

/// One token of a call.
template <FloatOrDouble Scalar>
struct choice_row : choice_call<Scalar> {
  index_t token;
  const Scalar* logits;  ///< [E] those to choose by: the gate's and noise
  const Scalar* clean;   ///< [E] the gate's
  const Scalar* scores;  ///< [E] what score() made of them
  Scalar* scratch;       ///< [2E] for any use within one function; holds anything
};

/// What was chosen for a token, as backward sees it.
template <FloatOrDouble Scalar>
struct weighed_experts {
  std::span<const index_t> ids;
  const Scalar* weights;
  const Scalar* dweights;  ///< gradients of the weights
};

/// One group of a call, for rules that choose for all of its tokens together.
template <FloatOrDouble Scalar>
struct choice_batch : choice_call<Scalar> {
  token_range group;
  std::span<const index_t> routable;    ///< the group's tokens without padding and without NaN, ascending
  const matrix_buffer<Scalar>& logits;  ///< [T,E] as in choice_row
  const matrix_buffer<Scalar>& clean;
  const matrix_buffer<Scalar>& scores;
};

template <typename R>
concept HasTopK = requires(const R& rule) {
  { rule.top_k() } -> std::convertible_to<index_t>;
};

template <typename R, typename Scalar>
concept CanScoreRow = requires(const R& rule, const choice_row<Scalar>& row, Scalar* scores) {
  rule.score(row, scores);
};

template <typename R, typename Scalar>
concept CanChooseExperts = requires(const R& rule, const choice_row<Scalar>& row, index_t* ids) {
  { rule.choose(row, ids) } -> std::convertible_to<index_t>;
};

template <typename R, typename Scalar>
concept CanAssignWithTape = HasTape<R> &&
    requires(const R& rule, const choice_batch<Scalar>& batch, choice_table<Scalar>& choices, typename R::tape& tape) {
      rule.assign(batch, choices, tape);
    };

template <typename R, typename Scalar>
concept CanAssignExperts = CanAssignWithTape<R, Scalar> ||
    requires(const R& rule, const choice_batch<Scalar>& batch, choice_table<Scalar>& choices) {
      rule.assign(batch, choices);
    };

template <typename R, typename Scalar>
concept CanAssignBackward = CanAssignWithTape<R, Scalar> &&
    requires(const R& rule, const choice_batch<Scalar>& batch, choice_table<Scalar>& choices,
             const matrix_buffer<Scalar>& dweights, typename R::tape& tape, matrix_buffer<Scalar>& dlogits) {
      rule.assign_backward(batch, choices, dweights, tape, dlogits);
    };

/// Whether some calls are assigned and others chosen token by token.
template <typename R, typename Scalar>
concept SaysWhenItAssigns = requires(const R& rule, const routing_context<Scalar>& context) {
  { rule.assigns(context) } -> std::convertible_to<bool>;
};

template <typename R, typename Scalar>
concept CanWeighRow =
    requires(const R& rule, const choice_row<Scalar>& row, std::span<const index_t> ids, Scalar* weights) {
      rule.weigh(row, ids, weights);
    };

template <typename R, typename Scalar>
concept CanWeighRowBackward = requires(const R& rule, const choice_row<Scalar>& row,
                                       const weighed_experts<Scalar>& weighed, Scalar* dlogits) {
  rule.backward(row, weighed, dlogits);
};

/// Turns one token's logits into experts and weights.
template <typename R, typename Scalar>
concept ChoiceRule = HasTopK<R> && CanScoreRow<R, Scalar> &&
    (CanChooseExperts<R, Scalar> || (CanAssignExperts<R, Scalar> && !SaysWhenItAssigns<R, Scalar>)) &&
    CanWeighRow<R, Scalar> && CanWeighRowBackward<R, Scalar>;

/// Whether the choice for a token depends on that token alone. A rule that assigns is not causal unless it says so.
template <typename R, typename Scalar>
inline constexpr bool is_causal_rule = [] {
  if constexpr (requires { R::causal; })
    return bool(R::causal);
  else
    return !CanAssignExperts<R, Scalar>;
}();

/// static_assert(explain_choice_rule<my_rule, float>()): the first error names the first thing that is missing.
template <typename R, typename Scalar>
consteval bool explain_choice_rule() {
  static_assert(HasTopK<R>, "sluice: choice rule needs `index_t top_k() const`");
  static_assert(CanScoreRow<R, Scalar>,
                "sluice: choice rule needs `void score(const choice_row<scalar>&, scalar* scores) const`");
  static_assert(CanChooseExperts<R, Scalar> || CanAssignExperts<R, Scalar>,
                "sluice: choice rule needs `index_t choose(const choice_row<scalar>&, index_t* ids) const`, or `void "
                "assign(const choice_batch<scalar>&, choice_table<scalar>& choices) const`");
  static_assert(CanChooseExperts<R, Scalar> || !SaysWhenItAssigns<R, Scalar>,
                "sluice: choice rule with `assigns(context)` needs `index_t choose(const choice_row<scalar>&, index_t* "
                "ids) const` for calls that it does not assign");
  static_assert(CanWeighRow<R, Scalar>,
                "sluice: choice rule needs `void weigh(const choice_row<scalar>&, std::span<const index_t> ids, "
                "scalar* weights) const`");
  static_assert(CanWeighRowBackward<R, Scalar>,
                "sluice: choice rule needs `void backward(const choice_row<scalar>&, const weighed_experts<scalar>&, "
                "scalar* dlogits) const`");
  return ChoiceRule<R, Scalar>;
}

}  // namespace sluice::inline SLUICE_ISA
