// The checks that hold for every router, once for each scalar and kind of plan.
#include "any_router.hpp"

#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/train/conformance.hpp>
#include <sluice/train/initialize.hpp>

#include "token_choice_support.hpp"

namespace sluice::test {

template <typename Scalar, typename Plan, bool Causal, bool Exact>
conformance_report conformance_of(const any_router<Scalar, Plan, Causal, Exact>& router,
                                  const routing_context<Scalar>& context) {
  return check_router(router, {.context = context});
}

template <typename Scalar>
void check_promises_of(const any_router<Scalar, sparse_plan<Scalar>>& router, index_t choices, bool causal,
                       const chooser<Scalar>& chosen_over) {
  using router_type = any_router<Scalar, sparse_plan<Scalar>>;
  const index_t T = 37;
  const index_t E = router.experts();
  matrix<Scalar> x = random_matrix<Scalar>(T, E, 301);
  x.col(E - 1).array() -= Scalar(30);  // an expert that nobody wants
  x.col(0).array() += Scalar(1);       // and one that many want
  routing_context<Scalar> context;
  context.training = true;
  context.random = random_source(17);
  const auto result = route(router, x, context);
  const index_t k = result.tape.choices.top_k;

  // Ids in range and distinct, ranks ascend, kept and dropped make up what was asked for.
  result.plan.validate();
  index_t asked = 0;
  for (const std::uint8_t a : result.tape.choices.asked) asked += a;
  CHECK(asked == result.plan.size() + index_t(result.plan.dropped().size()));
  if (choices >= 0) CHECK(asked == choices * T);
  for (index_t t = 0; t < T; ++t) {
    index_t last = -1;
    for (const index_t i : result.plan.of_token(t)) {
      CHECK(result.plan.rank(i) > last);
      last = result.plan.rank(i);
    }
  }
  if (k < E) CHECK(result.plan.load(E - 1) == 0);

  // What scratch memory held before reaches no choice.
  const auto chosen = chosen_over(context, x, Scalar(0));
  for (const Scalar held : {Scalar(1e30), Scalar(-1e30), quiet_nan<Scalar>()})
    CHECK(chosen_over(context, x, held) == chosen);

  // Equal bits for every thread count, forward and backward.
  const auto backward = [&](const router_type& original, executor_ref executor) {
    router_type copy = original;
    routing_context<Scalar> c = context;
    c.executor = executor;
    routed<router_type> r = route(copy, x, c);
    r.tape.dseen.zero_like(r.tape.seen);
    sparse_plan_gradient<Scalar> gradient;
    gradient.weight.assign(r.plan.size(), Scalar(0));
    for (index_t i = 0; i < r.plan.size(); ++i)
      gradient.weight[i] = Scalar(std::sin(double(r.plan.token(i) + 3 * r.plan.rank(i))));
    gradient.input_scale = gradient.weight;
    matrix<Scalar> dx = matrix<Scalar>::Zero(T, E);
    copy.backward(x, c, r.plan, gradient, r.tape, dx);
    return std::pair(plan_bits(r.plan), dx);
  };
  const auto serial = backward(router, {});
  CHECK(serial.first == plan_bits(result.plan));
  CHECK(serial.second.allFinite());
  for (const int threads : {1, 2, 3, 8}) {
    CAPTURE(threads);
    shuffled_threads pool(threads);
    const auto parallel = backward(router, pool);
    CHECK(parallel.first == serial.first);
    CHECK(same_bits(parallel.second, serial.second));
  }

  // The same call gives the same bits again; another seed is another call.
  CHECK(plan_bits(route(router, x, context).plan) == plan_bits(result.plan));

  // A NaN disturbs nobody: the others fare as if that token were padding.
  matrix<Scalar> broken = x;
  broken(5, 1) = quiet_nan<Scalar>();
  const auto with_nan = route(router, broken, context);
  std::vector<std::uint8_t> mask(std::size_t(T), 1);
  mask[5] = 0;
  routing_context<Scalar> masked_context = context;
  masked_context.token_mask = mask;
  const auto masked = route(router, broken, masked_context);
  CHECK(plan_bits(with_nan.plan) == plan_bits(masked.plan));
  REQUIRE(with_nan.plan.invalid_tokens().size() == 1);
  CHECK(with_nan.plan.invalid_tokens()[0] == 5);
  CHECK(masked.plan.invalid_tokens().empty());
  CHECK(with_nan.plan.of_token(5).empty());
  with_nan.plan.validate();
  if (causal) CHECK(plan_bits(with_nan.plan, 5).size() > 0);

  // Whole rows of NaN, of infinities: ids stay in range and distinct, weights of valid tokens finite.
  matrix<Scalar> wild = x;
  wild.row(0).setConstant(quiet_nan<Scalar>());
  wild.row(1).setConstant(std::numeric_limits<Scalar>::infinity());
  wild.row(2).setConstant(-std::numeric_limits<Scalar>::infinity());
  wild(3, E / 2) = std::numeric_limits<Scalar>::infinity();
  const auto wild_result = route(router, wild, context);
  wild_result.plan.validate();
  // No rule sees the row of NaN, nor those whose noise became NaN.
  const auto invalid = wild_result.plan.invalid_tokens();
  CHECK(wild_result.tape.choices.expert[0] == no_expert);
  for (index_t pair = 0; pair < T * k; ++pair) {
    const index_t expert = wild_result.tape.choices.expert[pair];
    if (std::find(invalid.begin(), invalid.end(), pair / k) != invalid.end()) continue;
    CHECK((expert >= 0 && expert < E));
    for (index_t other = pair / k * k; other < pair; ++other) CHECK(wild_result.tape.choices.expert[other] != expert);
  }
  for (const Scalar w : wild_result.plan.weights()) CHECK((!is_nan(w) && std::abs(w) < Scalar(1e6)));
  if (!wild_result.tape.seen.has_noise) CHECK(wild_result.tape.choices.expert[3 * k] == E / 2);

  // No tokens, one token, nothing but padding.
  const auto none = route(router, matrix<Scalar>(0, E), context);
  CHECK(none.plan.size() == 0);
  CHECK(none.plan.by_expert().experts() == E);
  const auto one = route(router, matrix<Scalar>(x.topRows(1)), context);
  CHECK(one.plan.size() + index_t(one.plan.dropped().size()) >= 1);
  std::fill(mask.begin(), mask.end(), std::uint8_t(0));
  const auto nobody = route(router, broken, masked_context);
  CHECK(nobody.plan.size() == 0);
  CHECK(nobody.plan.dropped().empty());
}

gradient_report check_router_gradients_of(const any_router<double, sparse_plan<double>>& router, index_t tokens,
                                          std::uint64_t seed, const routing_context<double>& context,
                                          index_t* dropped) {
  const index_t experts = router.experts();
  const index_t width = router.inputs();
  moe_layer layer{router, expert_bank<swiglu<double>>(experts, width, 3)};
  initialize(layer, seed);
  matrix<double> x = random_matrix<double>(tokens, width, seed + 1);
  const matrix<double> dy = random_matrix<double>(tokens, width, seed + 2);
  matrix<double> y(tokens, width);
  matrix<double> dx(tokens, width);
  typename decltype(layer)::tape tape;
  layer.forward(x, y, tape, context);
  layer.backward(dy, dx, tape);
  if (dropped) *dropped = index_t(tape.plan.dropped().size());
  return check_gradients(layer, {{"x", span_of(x), span_of(std::as_const(dx))}}, [&] {
    typename decltype(layer)::workspace workspace;
    layer.forward(x, y, workspace, context);
    return (y.array() * dy.array()).sum();
  });
}

#define SLUICE_TEST_CONFORMANCE(scalar, plan, causal, exact)                                              \
  template conformance_report conformance_of(const any_router<scalar, plan<scalar>, causal, exact>& router, \
                                             const routing_context<scalar>& context);
SLUICE_TEST_CONFORMANCE(float, sparse_plan, true, true)
SLUICE_TEST_CONFORMANCE(float, sparse_plan, false, true)
SLUICE_TEST_CONFORMANCE(float, soft_plan, false, true)
SLUICE_TEST_CONFORMANCE(double, sparse_plan, true, true)
SLUICE_TEST_CONFORMANCE(double, sparse_plan, false, true)
SLUICE_TEST_CONFORMANCE(double, sparse_plan, true, false)
SLUICE_TEST_CONFORMANCE(double, soft_plan, false, true)
SLUICE_TEST_CONFORMANCE(double, dense_plan, true, true)
SLUICE_TEST_CONFORMANCE(double, dense_plan, false, true)

template void check_promises_of(const any_router<float, sparse_plan<float>>&, index_t, bool, const chooser<float>&);
template void check_promises_of(const any_router<double, sparse_plan<double>>&, index_t, bool, const chooser<double>&);

}  // namespace sluice::test
