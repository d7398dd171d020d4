/// The rule of a token-choice router: how one token's row of logits becomes experts and weights.
///
///   top_k()                                                            experts a token unless the call says otherwise
///   score(logits, E, scores)                                           fills scores [E], kept for backward
///   choose(logits, scores, scratch, E, k, ids) -> count                distinct ids, best first; scratch [2E]
///   weigh(logits, scores, E, ids, count, weights)                      combine weights of what was chosen
///   backward(logits, scores, E, ids, count, weights, dweights, dlogits)    adds into dlogits [E]
///   priority(scores, E)                                                for capacity that serves sure tokens first
/// and, where it wants,
///   check(E), check_call(E, k, training)       throw if the options, or the k of a call, do not fit
///   choose_drawn(context, token, logits, ...)  in place of choose, for choices that are drawn at random
///   weigh_drawn(context, token, logits, ...)   in place of weigh, for weights that are drawn at random
///   keeps(context, token, rank, T, weight)     thins out choices
///   after_step(statistics)                     for what is learned without gradients
///   visit_parameters                           if it has parameters; their names begin with "rule."
///
/// All are const but after_step, and are called for many tokens at once. ids given to weigh and backward may be fewer
/// than were chosen, where weights are computed after a capacity drop. Rows may hold NaN; ids must be distinct and in
/// range all the same: kernel::top_k sees to that. If yours is refused:
/// static_assert(sluice::explain_choice_rule<my_rule, float>()).
#pragma once

#include <sluice/core/context.hpp>
#include <sluice/core/types.hpp>

#include <concepts>

namespace sluice::inline SLUICE_ISA {

template <typename R>
concept HasTopK = requires(const R& rule) {
  { rule.top_k() } -> std::convertible_to<index_t>;
};

template <typename R, typename Scalar>
concept CanScoreRow = requires(const R& rule, const Scalar* logits, index_t experts, Scalar* scores) {
  rule.score(logits, experts, scores);
};

template <typename R, typename Scalar>
concept CanDrawExperts = requires(const R& rule, const routing_context<Scalar>& context, index_t token,
                                  const Scalar* row, Scalar* scratch, index_t experts, index_t k, index_t* ids) {
  { rule.choose_drawn(context, token, row, row, scratch, experts, k, ids) } -> std::convertible_to<index_t>;
};

template <typename R, typename Scalar>
concept CanChooseExperts = CanDrawExperts<R, Scalar> ||
    requires(const R& rule, const Scalar* row, Scalar* scratch, index_t experts, index_t k, index_t* ids) {
  { rule.choose(row, row, scratch, experts, k, ids) } -> std::convertible_to<index_t>;
};

template <typename R, typename Scalar>
concept CanWeighRow = requires(const R& rule, const Scalar* row, index_t experts, const index_t* ids, index_t count,
                               Scalar* weights) {
  rule.weigh(row, row, experts, ids, count, weights);
};

template <typename R, typename Scalar>
concept CanWeighRowBackward = requires(const R& rule, const Scalar* row, index_t experts, const index_t* ids,
                                       index_t count, Scalar* dlogits) {
  rule.backward(row, row, experts, ids, count, row, row, dlogits);
};

template <typename R, typename Scalar>
concept HasPriority = requires(const R& rule, const Scalar* scores, index_t experts) {
  { rule.priority(scores, experts) } -> std::convertible_to<Scalar>;
};

/// Turns one token's logits into experts and weights.
template <typename R, typename Scalar>
concept ChoiceRule = HasTopK<R> && CanScoreRow<R, Scalar> && CanChooseExperts<R, Scalar> && CanWeighRow<R, Scalar> &&
    CanWeighRowBackward<R, Scalar> && HasPriority<R, Scalar>;

/// static_assert(explain_choice_rule<my_rule, float>()): the first error names the first thing that is missing.
template <typename R, typename Scalar>
consteval bool explain_choice_rule() {
  static_assert(HasTopK<R>, "sluice: choice rule needs `index_t top_k() const`");
  static_assert(CanScoreRow<R, Scalar>,
                "sluice: choice rule needs `void score(const scalar* logits, index_t experts, scalar* scores) const`");
  static_assert(
      CanChooseExperts<R, Scalar>,
      "sluice: choice rule needs `index_t choose(const scalar* logits, const scalar* scores, scalar* scratch, "
      "index_t experts, index_t k, index_t* ids) const`");
  static_assert(
      CanWeighRow<R, Scalar>,
      "sluice: choice rule needs `void weigh(const scalar* logits, const scalar* scores, index_t experts, const "
      "index_t* ids, index_t count, scalar* weights) const`");
  static_assert(
      CanWeighRowBackward<R, Scalar>,
      "sluice: choice rule needs `void backward(const scalar* logits, const scalar* scores, index_t experts, "
      "const index_t* ids, index_t count, const scalar* weights, const scalar* dweights, scalar* dlogits) const`");
  static_assert(HasPriority<R, Scalar>,
                "sluice: choice rule needs `scalar priority(const scalar* scores, index_t experts) const`");
  return ChoiceRule<R, Scalar>;
}

}  // namespace sluice::inline SLUICE_ISA
