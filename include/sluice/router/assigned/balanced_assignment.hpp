/// BASE: in training every expert gets as many tokens, such that the scores of all of them together are as high as can
/// be.
///
///   X [T,D]   s = X C^T [T,E]   w = sigmoid(s[e])
///   training    every token has one expert and every expert at most m = ceil(n/E) of the group's n tokens, exactly m
///               if E divides n; sum of s over the assignment as large as the solver gets it:
///                 auction            as published (router/assigned/auction.hpp)
///                 greedy_assignment  experts in random order take their best (router/assigned/greedy_assignment.hpp)
///                 exact_assignment   the best there is (router/assigned/exact_assignment.hpp)
///   inference   e = the largest of s[t], however many that gives an expert
///
/// Published layers mix what the expert makes of a token with the token: y = w f(x) + (1 - w) x. That is a residual
/// layer around experts that give the change alone, f(x) - x (expert/change.hpp), or, with experts f(x) = x + g(x),
/// around g:
///
///   residual_layer block{moe_layer{base_router<float>{64, 8}, expert_bank<change_expert<my_expert>>{...}}};
///
/// Where E does not divide n the group is filled up with tokens that everybody scores lowest. The choice is a constant:
/// dL[t,e] = g w (1 - w). Scores that are infinite of either sign count as the smallest finite one (0 if there is
/// none). Padding and tokens with NaN are not assigned. k is 1. Ties: as the solver says; the lower expert at
/// inference. T = 0 is fine. Not causal. C is linear_gate's weight, which starts at normal numbers; the papers begin
/// with orthogonal rows of length 0.1. Lewis, Bhosale, Dettmers, Goyal, Zettlemoyer 2021, arXiv:2103.16716.
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/gate/linear.hpp>
#include <sluice/kernel/order.hpp>
#include <sluice/router/assigned/assignment_solver.hpp>
#include <sluice/router/assigned/auction.hpp>
#include <sluice/router/assigned/exact_assignment.hpp>
#include <sluice/router/assigned/greedy_assignment.hpp>
#include <sluice/router/token_choice.hpp>
#include <sluice/router/tokens_choose/sigmoid_top_k.hpp>
#include <sluice/router/weighed_rule.hpp>

#include <algorithm>
#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

/// The rule of balanced assignment, for one group.
template <FloatOrDouble Scalar, typename Solver = auction<Scalar>>
class balanced_assignment_rule : public weighed_by<Scalar, sigmoid_rule<Scalar>> {
  using base = weighed_by<Scalar, sigmoid_rule<Scalar>>;
  static_assert(explain_assignment_solver<Solver, Scalar>());

public:
  struct tape {
    typename Solver::tape solver;
    matrix_buffer<Scalar> scores;  ///< [E,N] of the last group
    buffer<index_t> expert_of;     ///< [N]
  };

  explicit balanced_assignment_rule(index_t experts, Solver solver = {})
      : base(sigmoid_rule<Scalar>(experts, {.top_k = 1, .renormalize = false, .selection_bias = false})),
        solver_(std::move(solver)) {}

  index_t top_k() const noexcept { return 1; }
  bool assigns(const routing_context<Scalar>& context) const noexcept { return context.training; }
  void validate_call(const choice_call<Scalar>& call) const {
    if (call.k != 1) throw_invalid("balanced assignment gives a token one expert; the call asks for k = ", call.k);
  }

  index_t choose(const choice_row<Scalar>& row, index_t* ids) const {
    ids[0] = kernel::arg_max(row.logits, row.experts);
    return 1;
  }

  void reserve(const choice_call<Scalar>& call, tape& t) const {
    const index_t most = rounded_up(call.tokens, call.experts);
    t.scores.reserve(call.experts, most);
    t.expert_of.reserve(most);
    t.solver.reserve(call.experts, most);
  }
  void assign(const choice_batch<Scalar>& batch, choice_table<Scalar>& choices, tape& t) const {
    const auto count = static_cast<index_t>(batch.routable.size());
    t.scores.resize(batch.experts, rounded_up(count, batch.experts));
    fill(batch, t.scores);
    const assignment_call call{batch.context.executor, batch.context.random, batch.group.begin * batch.experts};
    solver_.assign(t.scores, call, t.solver, t.expert_of);
    for (index_t i = 0; i < count; ++i) choices.ids(batch.routable[static_cast<std::size_t>(i)])[0] = t.expert_of[i];
  }

private:
  static index_t rounded_up(index_t tokens, index_t experts) { return (tokens + experts - 1) / experts * experts; }

  static bool is_infinite(const Scalar& v) { return (std::abs)(order_key(v)) == detail::infinity_bits<Scalar>; }

  /// Scores by expert, finite, and the tokens that fill the group up.
  static void fill(const choice_batch<Scalar>& batch, matrix_buffer<Scalar>& scores) {
    Scalar least = 0;
    bool has_finite = false;
    for (const index_t token : batch.routable)
      for (index_t e = 0; e < batch.experts; ++e) {
        const Scalar score = batch.logits(token, e);
        if (is_infinite(score) || (has_finite && !(score < least))) continue;
        least = score;
        has_finite = true;
      }
    const auto count = static_cast<index_t>(batch.routable.size());
    for (index_t e = 0; e < batch.experts; ++e) {
      for (index_t i = 0; i < count; ++i) {
        const Scalar score = batch.logits(batch.routable[static_cast<std::size_t>(i)], e);
        scores(e, i) = is_infinite(score) ? least : score;
      }
      std::fill(scores.row(e) + count, scores.row(e) + scores.cols(), least);
    }
  }

  Solver solver_;
};

/// sluice::base_router<float> router{64, 8};
template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>, typename Solver = auction<Scalar>>
class base_router : public token_choice_router<GateType, balanced_assignment_rule<Scalar, Solver>> {
  using base = token_choice_router<GateType, balanced_assignment_rule<Scalar, Solver>>;

public:
  /// A linear gate without bias.
  base_router(index_t inputs, index_t experts)
    requires std::constructible_from<GateType, index_t, index_t>
      : base_router(GateType(inputs, experts)) {}
  explicit base_router(GateType gate, Solver solver = {})
      : base_router(gate.experts(), std::move(gate), std::move(solver)) {}

private:
  base_router(index_t experts, GateType&& gate, Solver&& solver)
      : base(std::move(gate), balanced_assignment_rule<Scalar, Solver>(experts, std::move(solver))) {}
};

static_assert(explain_choice_rule<balanced_assignment_rule<float>, float>());
static_assert(DifferentiableRouter<base_router<float>>);
static_assert(DifferentiableRouter<base_router<double, linear_gate<double>, exact_assignment<double>>>);
static_assert(DifferentiableRouter<base_router<float, linear_gate<float>, greedy_assignment<float>>>);

}  // namespace sluice::inline SLUICE_ISA
