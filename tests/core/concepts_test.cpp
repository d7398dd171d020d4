#include <sluice/core/concepts.hpp>

#include <sluice/core/choices.hpp>
#include <sluice/core/signals.hpp>
#include <sluice/core/sparse_plan.hpp>

#include "../support.hpp"

using namespace sluice;

// The smallest type of each role. What happens when a part is missing is tested by the programs in tests/compile_fail.
namespace {

struct small_gate {
  using scalar = float;
  struct tape {};
  index_t inputs() const { return 1; }
  index_t experts() const { return 1; }
  void forward(tokens_in<float>, const routing_context<float>&, tokens_out<float>, tape&) const {}
};
struct trained_gate : small_gate {
  void backward(tokens_in<float>, const routing_context<float>&, tokens_in<float>, tape&, tokens_out<float>) {}
};

struct bare_plan {
  using scalar = float;
  struct gradient {};
  index_t tokens() const { return 0; }
  index_t experts() const { return 1; }
  index_t rows() const { return 0; }
  index_t most_rows() const { return 0; }
  expert_rows by_expert() const { return {}; }
  std::span<const index_t> invalid_tokens() const { return {}; }
};
struct bare_routed_plan : bare_plan {
  using gradient = sparse_plan_gradient<float>;
  routed_rows<float> routed() const { return {}; }
};

struct small_router {
  using scalar = float;
  using plan = sparse_plan<float>;
  struct tape {
    score_signals<float> seen;
    score_gradients<float> dseen;
  };
  index_t inputs() const { return 1; }
  index_t experts() const { return 1; }
  void route(tokens_in<float>, const routing_context<float>&, plan&, tape&) const {}
};
struct trained_router : small_router {
  static constexpr bool causal = false;
  static constexpr bool exact_gradient = false;
  void backward(tokens_in<float>, const routing_context<float>&, const plan&, const plan::gradient&, tape&,
                tokens_out<float>) {}
};
struct weighing_router : small_router {
  bool needs_outputs(const routing_context<float>&, const plan&, const tape&) const { return true; }
  void weigh(tokens_in<float>, const routing_context<float>&, plan&, tape&) const {}
  void backward_outputs(tokens_in<float>, const routing_context<float>&, const plan&, const plan::gradient&, tape&,
                        tokens_out<float>) {}
};

struct small_expert {
  using scalar = float;
  index_t inputs() const { return 1; }
  index_t outputs() const { return 1; }
  index_t saved_columns() const { return 0; }
  void forward(tokens_in<float>, tokens_out<float>, tokens_out<float>) const {}
};
struct trained_expert : small_expert {
  void backward(tokens_in<float>, tokens_in<float>, tokens_out<float>, tokens_out<float>) {}
};

struct small_bank {
  using scalar = float;
  struct tape {};
  index_t inputs() const { return 1; }
  index_t outputs() const { return 1; }
  index_t experts() const { return 1; }
  void forward(tokens_in<float>, const expert_rows&, tokens_out<float>, tape&, const executor_ref&) const {}
};
struct routed_bank : small_bank {
  void forward_routed(tokens_in<float>, const routed_rows<float>&, tokens_out<float>, tape&, const executor_ref&) const {}
};
struct trained_bank : small_bank {
  void backward(tokens_in<float>, const expert_rows&, tokens_in<float>, tokens_out<float>, tape&,
                const executor_ref&) {}
};

struct small_loss {
  float operator()(const score_signals<float>&, const sparse_plan<float>&, const routing_context<float>&,
                   score_gradients<float>&) const {
    return 0;
  }
};

struct small_capacity {
  static constexpr bool causal = true;
  template <typename Scalar>
  void serve(choice_table<Scalar>&, token_range, index_t, const routing_context<Scalar>&) const {}
};

struct small_executor {
  template <typename Body>
  void parallel_for(index_t n, Body&& body) {
    for (index_t i = 0; i < n; ++i) body(i);
  }
};

}  // namespace

TEST_CASE("concepts: the smallest type of each role is accepted, and explained", "[core][concepts]") {
  STATIC_REQUIRE(explain_gate<small_gate>());
  STATIC_REQUIRE(explain_plan<bare_plan>());
  STATIC_REQUIRE(explain_router<small_router>());
  STATIC_REQUIRE(explain_differentiable_router<trained_router>());
  STATIC_REQUIRE(explain_expert<small_expert>());
  STATIC_REQUIRE(explain_differentiable_expert<trained_expert>());
  STATIC_REQUIRE(explain_bank<small_bank>());
  STATIC_REQUIRE(explain_loss<small_loss, small_router>());
  STATIC_REQUIRE(explain_capacity<small_capacity>());
  STATIC_REQUIRE(explain_executor<small_executor>());
}

TEST_CASE("concepts: training needs backward, and each role is its own", "[core][concepts]") {
  STATIC_REQUIRE(Gate<small_gate> && !DifferentiableGate<small_gate> && DifferentiableGate<trained_gate>);
  STATIC_REQUIRE(RouterPolicy<small_router> && !DifferentiableRouter<small_router> &&
                 DifferentiableRouter<trained_router>);
  STATIC_REQUIRE(ExpertFunctor<small_expert> && !DifferentiableExpert<small_expert> &&
                 DifferentiableExpert<trained_expert>);
  STATIC_REQUIRE(ExpertBank<small_bank> && !DifferentiableBank<small_bank> && DifferentiableBank<trained_bank>);
  STATIC_REQUIRE(CanRunPlan<routed_bank, bare_routed_plan> && CanRunPlan<routed_bank, sparse_plan<float>>);
  STATIC_REQUIRE(!CanRunPlan<small_bank, bare_routed_plan> && !CanRunPlan<routed_bank, bare_plan> &&
                 !CanRunPlan<routed_bank, sparse_plan<double>>);
  STATIC_REQUIRE(WeighsAfterExperts<weighing_router> && !WeighsAfterExperts<small_router>);
  STATIC_REQUIRE(!RouterPolicy<small_gate> && !Gate<small_router> && !ExpertFunctor<small_bank> &&
                 !ExpertBank<small_expert> && !RoutingPlan<small_router> && !RoutedPlan<bare_plan>);
  STATIC_REQUIRE(!Executor<small_loss> && !CapacityPolicy<small_executor>);
}

TEST_CASE("concepts: traits default to causal and exact", "[core][concepts]") {
  STATIC_REQUIRE(is_causal<small_router> && !is_causal<trained_router>);
  STATIC_REQUIRE(has_exact_gradient<small_router> && !has_exact_gradient<trained_router>);
}
