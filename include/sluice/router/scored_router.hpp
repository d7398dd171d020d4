/// What routers share that turn a row of scores into weights without choosing k: a gate, a screen, and the way back.
///
///   logits L [T,E] = gate(x), of what may be seen           score()
///   the router's own: a plan of L
///   dL [T,E] -> gradients of the gate and of x              pull_back()
///
/// A router derives from it, calls score() in route, makes a plan of t.seen.clean, and in backward calls start_back(),
/// adds the gradients of the plan's weights into t.dlogits and calls pull_back(). router/threshold/relu.hpp is the
/// shortest; where every expert has a weight, router/every_expert/dense_mixture.hpp has done that once for all.
/// Padding is hidden from the gate; so is a token that holds NaN, or whose logits do: it is invalid, its row of
/// t.seen.clean is NaN, and its gradients, whatever was added, are cleared. T = 0 is fine.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/signals.hpp>
#include <sluice/core/statistics.hpp>
#include <sluice/core/token_screen.hpp>
#include <sluice/router/noise.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename GateType>
class scored_router {
  static_assert(explain_differentiable_gate<GateType>());

public:
  using scalar = detail::scalar_of<GateType>;
  static constexpr bool causal = is_causal<GateType>;
  static constexpr bool exact_gradient = has_exact_gradient<GateType>;

  struct tape {
    score_signals<scalar> seen;
    score_gradients<scalar> dseen;
    typename GateType::tape gate;
    typename no_noise<scalar>::tape noise;
    token_screen<scalar> screen;    ///< who is routed, and what the gate saw
    matrix_buffer<scalar> dlogits;  ///< [T,E]
  };

  explicit scored_router(GateType gate) : gate_(std::move(gate)) {}

  index_t inputs() const noexcept { return gate_.inputs(); }
  index_t experts() const noexcept { return gate_.experts(); }

  /// Updates what the gate learns without gradients, once per optimiser step.
  template <typename Tape>
  void after_step(const routing_statistics& statistics, Tape& t)
    requires requires(GateType& gate, typename GateType::tape& own) { gate.after_step(statistics, own); }
  {
    gate_.after_step(statistics, t.gate);
  }

  GateType& gate() noexcept { return gate_; }
  const GateType& gate() const noexcept { return gate_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<GateType>) visit("gate", self.gate());
  }

protected:
  /// Fills t.seen.clean and t.screen.
  void score(tokens_in<scalar> x, const routing_context<scalar>& context, tape& t) const {
    check_tokens(x, inputs(), context);
    detail::score_screened(gate_, no_noise<scalar>{}, x, context, t);
  }

  /// dL so far: what losses and callers left.
  void start_back(tape& t) const { t.dlogits = t.dseen.clean; }

  void pull_back(tokens_in<scalar> x, const routing_context<scalar>& context, tape& t, tokens_out<scalar> dx) {
    t.screen.clear_hidden(t.dlogits);
    gate_.backward(t.screen.of(x), context, t.dlogits.map(), t.gate, dx);
  }

private:
  GateType gate_;
};

}  // namespace sluice::inline SLUICE_ISA
