/// What attention layers with routed heads have in place of a plain map: a router, its losses, and the rows of heads
/// between which it routes.
///
///   plan = router(x)                         one decision, used before attention, after it, or on both sides
///   map      heads[place(i)] += [weight(i)] f_expert(i)(x[token(i)])          for the assignments i of the plan
///   reduce   y[token(i)] += weight(i) f_expert(i)(heads[place(i)])
///
/// heads [T rows_a_token, W]: every token has `rows_a_token` rows, one after the other, so that they are the heads of
/// [T, rows_a_token W]. Which of them an assignment has is for the layer to say: one each (give_each_a_row), or one for
/// all experts of a head (give_rows). Rows of no assignment are zero. Both ways are calls of a routed bank: no second
/// pass gathers or adds. A token whose logits hold NaN has no assignments; invalid_tokens() of the plan lists it.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/core/statistics.hpp>
#include <sluice/loss/loss_list.hpp>

#include <algorithm>
#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Router, typename... Losses>
class head_router {
  static_assert(explain_router<Router>());
  static_assert((explain_loss<Losses, Router>() && ...));
  static_assert(std::same_as<typename Router::plan, sparse_plan<typename Router::scalar>>,
                "sluice: heads are routed by a sparse plan: a router in which tokens and experts choose each other");

public:
  using scalar = typename Router::scalar;
  static constexpr bool causal = is_causal<Router>;
  static constexpr bool exact_gradient = has_exact_gradient<Router>;

  struct workspace {
    sparse_plan<scalar> plan;
    typename Router::tape router;
    buffer<index_t> places;  ///< of every assignment: its row of the heads
    index_t rows_a_token = 0;
    routing_statistics statistics;  ///< since the last clear()
  };
  struct tape : workspace, loss_values<scalar, sizeof...(Losses)> {
    sparse_plan_gradient<scalar> dplan;
  };

  explicit head_router(Router router, Losses... losses) : router_(std::move(router)), losses_(std::move(losses)...) {}

  /// Makes the plan, and in a tape evaluates the losses. The context hides padding and whatever else is not routed.
  /// Throws std::invalid_argument if the plan scales inputs: x is read as it is.
  template <std::derived_from<workspace> Memory>
  void route(tokens_in<scalar> x, const routing_context<scalar>& context, Memory& m) const {
    router_.route(x, context, m.plan, m.router);
    if (m.plan.has_input_scale()) throw_invalid("heads are weighed where they are put out, not by what they read");
    if constexpr (std::derived_from<Memory, tape>) losses_.evaluate(m.router, m.plan, context, m);
    index_t padding = 0;
    for (index_t t = 0; t < x.rows(); ++t) padding += context.is_padding(t);
    m.statistics.count(m.plan, padding);
  }

  /// As many rows for every token as one of them has assignments: the j-th assignment of a token has its j-th row.
  static void give_each_a_row(workspace& m) {
    m.rows_a_token = 1;
    for (index_t t = 0; t < m.plan.tokens(); ++t)
      m.rows_a_token = (std::max)(m.rows_a_token, static_cast<index_t>(m.plan.of_token(t).size()));
    m.places.reserve(m.plan.most_rows());
    m.places.resize(m.plan.size());
    for (index_t t = 0; t < m.plan.tokens(); ++t) {
      index_t row = t * m.rows_a_token;
      for (const index_t i : m.plan.of_token(t)) m.places[i] = row++;
    }
  }
  /// `rows_a_token` rows for every token, and for an assignment to `expert` the slot_of(expert)-th.
  template <typename SlotOf>
  static void give_rows(workspace& m, index_t rows_a_token, const SlotOf& slot_of) {
    m.rows_a_token = rows_a_token;
    m.places.reserve(m.plan.most_rows());
    m.places.resize(m.plan.size());
    for (index_t i = 0; i < m.plan.size(); ++i)
      m.places[i] = m.plan.token(i) * rows_a_token + slot_of(m.plan.expert(i));
  }

  /// For banks: from tokens to heads, unweighted or weighted, and from heads to tokens.
  static routed_rows<scalar> to_heads(const workspace& m) noexcept {
    routed_rows<scalar> rows = weighted_to_heads(m);
    rows.weights = nullptr;
    return rows;
  }
  static routed_rows<scalar> weighted_to_heads(const workspace& m) noexcept {
    routed_rows<scalar> rows = m.plan.routed();
    rows.targets = m.places.data();
    return rows;
  }
  static routed_rows<scalar> from_heads(const workspace& m) noexcept {
    routed_rows<scalar> rows = m.plan.routed();
    rows.targets = std::exchange(rows.tokens, m.places.data());
    return rows;
  }

  /// Where a bank writes the gradients of the plan's weights.
  static scalar* weight_gradients(tape& t) {
    t.dplan.weight.reserve(t.plan.most_rows());
    t.dplan.weight.resize(t.plan.size());
    return t.dplan.weight.data();
  }
  /// Adds into dx and the router's gradients, once t.dplan is known.
  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, tape& t, tokens_out<scalar> dx) {
    router_.backward(x, context, t.plan, t.dplan, t.router, dx);
  }

  void after_step(tape& t) {
    if constexpr (requires { router_.after_step(t.statistics, t.router); }) router_.after_step(t.statistics, t.router);
    losses_.after_step(t.statistics);
    t.statistics.clear();
  }

  index_t inputs() const noexcept { return router_.inputs(); }
  index_t experts() const noexcept { return router_.experts(); }
  Router& router() noexcept { return router_; }
  const Router& router() const noexcept { return router_; }
  template <std::size_t I>
  auto& loss() noexcept {
    return losses_.template get<I>();
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<Router>) visit("router", self.router_);
    loss_list<Losses...>::visit_parameters(self.losses_, visit);
  }

private:
  Router router_;
  loss_list<Losses...> losses_;
};

}  // namespace sluice::inline SLUICE_ISA
