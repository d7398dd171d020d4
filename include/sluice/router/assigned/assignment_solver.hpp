/// What balanced assignment asks of a solver: m of N = m E tokens for each of E experts, by scores.
///
///   scores [E,N], finite  ->  expert_of [N], every expert m times
///
/// A solver is a policy of balanced_assignment_rule (router/assigned/balanced_assignment.hpp): auction,
/// greedy_assignment, exact_assignment, or your own. It keeps its scratch memory in its tape and may draw: position
/// first_draw + e is for expert e of this group alone.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/concepts.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/core/random.hpp>

namespace sluice::inline SLUICE_ISA {

/// What of its call a solver sees.
struct assignment_call {
  executor_ref executor{};
  random_source random{};
  index_t first_draw = 0;
};

template <typename S, typename Scalar>
concept AssignmentSolver = HasTape<S> && requires(const S& solver, const matrix_buffer<Scalar>& scores,
                                                  const assignment_call& call, typename S::tape& tape,
                                                  buffer<index_t>& expert_of) {
  solver.assign(scores, call, tape, expert_of);
  tape.reserve(index_t(), index_t());
};

template <typename S, typename Scalar>
consteval bool explain_assignment_solver() {
  static_assert(
      AssignmentSolver<S, Scalar>,
      "sluice: assignment solver needs a member type `tape` with `reserve(experts, tokens)`, and `void "
      "assign(const matrix_buffer<scalar>& scores, const assignment_call&, tape&, buffer<index_t>& expert_of) "
      "const`");
  return AssignmentSolver<S, Scalar>;
}

}  // namespace sluice::inline SLUICE_ISA
