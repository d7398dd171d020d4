// Shared by the tests of token-choice routers: logits given by hand, readable references, promises that every router
// keeps.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/choice_rule.hpp>
#include <sluice/train/gradient_check.hpp>
#include <sluice/train/initialize.hpp>

#include "../io/messages.hpp"
#include "../support.hpp"

namespace sluice::test {

/// A gate whose logits are its input: puts numbers chosen by hand, infinities and NaN in front of a rule.
template <std::floating_point Scalar>
class copy_gate {
public:
  using scalar = Scalar;
  struct tape {};
  copy_gate(index_t, index_t experts) : experts_(experts) {}
  index_t inputs() const { return experts_; }
  index_t experts() const { return experts_; }
  void forward(tokens_in<Scalar> x, const routing_context<Scalar>&, tokens_out<Scalar> logits, tape&) const {
    logits = x;
  }
  void backward(tokens_in<Scalar>, const routing_context<Scalar>&, tokens_in<Scalar> dlogits, tape&,
                tokens_out<Scalar> dx) {
    dx += dlogits;
  }

private:
  index_t experts_;
};
static_assert(DifferentiableGate<copy_gate<float>>);

/// The catalogue of published routers works its examples on these logits.
template <typename Scalar>
matrix<Scalar> fixture_f() {
  matrix<Scalar> logits(4, 4);
  logits << 2.0, 1.0, 0.0, -1.0, 1.5, 1.0, 0.5, 0.0, 0.0, 3.0, 1.0, 0.5, 2.5, 0.0, -0.5, 0.5;
  return logits;
}
inline constexpr double printed = 5.1e-7;  // numbers in examples have six decimals

/// Positions of a row's numbers, largest first; lower positions first among equals; NaN like -infinity.
template <typename Scalar>
std::vector<index_t> sorted_positions(const Scalar* row, index_t count) {
  std::vector<index_t> positions(static_cast<std::size_t>(count));
  for (index_t e = 0; e < count; ++e) positions[static_cast<std::size_t>(e)] = e;
  const auto value = [&](index_t e) { return is_nan(row[e]) ? -std::numeric_limits<Scalar>::infinity() : row[e]; };
  std::stable_sort(positions.begin(), positions.end(), [&](index_t a, index_t b) { return value(a) > value(b); });
  return positions;
}

/// Softmax of a row in double, straight from the definition.
template <typename Scalar>
std::vector<double> naive_softmax(const Scalar* row, index_t count) {
  std::vector<double> p(static_cast<std::size_t>(count));
  double maximum = -std::numeric_limits<double>::infinity();
  for (index_t e = 0; e < count; ++e) maximum = std::max(maximum, double(row[e]));
  double sum = 0;
  for (index_t e = 0; e < count; ++e) sum += p[static_cast<std::size_t>(e)] = std::exp(double(row[e]) - maximum);
  for (double& v : p) v /= sum;
  return p;
}

template <typename Router>
struct routed {
  typename Router::plan plan;
  typename Router::tape tape;
};

template <typename Router>
routed<Router> route(const Router& router, const matrix<typename Router::scalar>& x,
                     routing_context<typename Router::scalar> context = {}) {
  routed<Router> result;
  check_context(context, x.rows());
  router.route(x, context, result.plan, result.tape);
  return result;
}

/// Every assignment of a plan as text that tells all of its bits: (token, rank, expert, slot, weight, input scale).
template <typename Scalar>
std::string plan_bits(const sparse_plan<Scalar>& plan, index_t without_token = -1) {
  std::string text;
  const auto number = [&](Scalar v) {
    std::uint64_t bits = 0;
    std::memcpy(&bits, &v, sizeof v);
    text += std::to_string(bits) + ' ';
  };
  for (index_t t = 0; t < plan.tokens(); ++t)
    for (const index_t i : plan.of_token(t)) {
      if (t == without_token) continue;
      for (const index_t part : {t, plan.rank(i), plan.expert(i), plan.slot(i)}) text += std::to_string(part) + ' ';
      number(plan.weight(i)), number(plan.input_scale(i));
    }
  for (const auto& d : plan.dropped()) {
    if (d.token == without_token) continue;
    for (const index_t part : {d.token, d.rank, d.expert, d.slot}) text += 'd' + std::to_string(part) + ' ';
    number(d.weight);
  }
  return text;
}

/// The experts that a rule chooses for every token, with this number all over its scratch memory.
template <typename Router>
std::vector<index_t> chosen_over(const Router& router, const routing_context<typename Router::scalar>& context,
                                 const matrix<typename Router::scalar>& logits, typename Router::scalar held) {
  using scalar = typename Router::scalar;
  const auto& rule = router.rule();
  const index_t E = router.experts();
  const index_t k = router.top_k();
  std::vector<index_t> chosen;
  for (index_t t = 0; t < logits.rows(); ++t) {
    std::vector<scalar> scores(static_cast<std::size_t>(E));
    std::vector<scalar> scratch(static_cast<std::size_t>(2 * E), held);
    std::vector<index_t> ids(static_cast<std::size_t>(k), -1);
    const scalar* row = &logits(t, 0);
    const choice_row<scalar> token{
        {context, logits.rows(), E, k}, t, row, row, scores.data(), scratch.data()};
    rule.score(token, scores.data());
    const index_t count = rule.choose(token, ids.data());
    chosen.push_back(count);
    chosen.insert(chosen.end(), ids.begin(), ids.begin() + count);
  }
  return chosen;
}

/// What holds for every token-choice router over a copy_gate, whatever its rule: `choices` is how many of the tokens'
/// choices ask to be served, -1 if that is drawn at random. Capacity must be the same for 36 and 37 tokens.
template <typename Router>
void check_promises(const Router& router, index_t choices) {
  using scalar = typename Router::scalar;
  const index_t T = 37;
  const index_t E = router.experts();
  const index_t k = router.top_k();
  matrix<scalar> x = random_matrix<scalar>(T, E, 301);
  x.col(E - 1).array() -= scalar(30);  // an expert that nobody wants
  x.col(0).array() += scalar(1);       // and one that many want
  routing_context<scalar> context;
  context.training = true;
  context.random = random_source(17);
  const auto result = route(router, x, context);

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
  const auto chosen = chosen_over(router, context, x, scalar(0));
  for (const scalar held : {scalar(1e30), scalar(-1e30), quiet_nan<scalar>()})
    CHECK(chosen_over(router, context, x, held) == chosen);

  // Equal bits for every thread count, forward and backward.
  const auto backward = [&](const Router& original, executor_ref executor) {
    Router copy = original;
    routing_context<scalar> c = context;
    c.executor = executor;
    routed<Router> r = route(copy, x, c);
    r.tape.dseen.zero_like(r.tape.seen);
    typename Router::plan::gradient gradient;
    gradient.weight.assign(r.plan.size(), scalar(0));
    for (index_t i = 0; i < r.plan.size(); ++i)
      gradient.weight[i] = scalar(std::sin(double(r.plan.token(i) + 3 * r.plan.rank(i))));
    gradient.input_scale = gradient.weight;
    matrix<scalar> dx = matrix<scalar>::Zero(T, E);
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
  matrix<scalar> broken = x;
  broken(5, 1) = quiet_nan<scalar>();
  const auto with_nan = route(router, broken, context);
  std::vector<std::uint8_t> mask(std::size_t(T), 1);
  mask[5] = 0;
  routing_context<scalar> masked_context = context;
  masked_context.token_mask = mask;
  const auto masked = route(router, broken, masked_context);
  CHECK(plan_bits(with_nan.plan) == plan_bits(masked.plan));
  REQUIRE(with_nan.plan.invalid_tokens().size() == 1);
  CHECK(with_nan.plan.invalid_tokens()[0] == 5);
  CHECK(masked.plan.invalid_tokens().empty());
  CHECK(with_nan.plan.of_token(5).empty());
  with_nan.plan.validate();
  if (Router::causal) CHECK(plan_bits(with_nan.plan, 5).size() > 0);

  // Whole rows of NaN, of infinities: ids stay in range and distinct, weights of valid tokens finite.
  matrix<scalar> wild = x;
  wild.row(0).setConstant(quiet_nan<scalar>());
  wild.row(1).setConstant(std::numeric_limits<scalar>::infinity());
  wild.row(2).setConstant(-std::numeric_limits<scalar>::infinity());
  wild(3, E / 2) = std::numeric_limits<scalar>::infinity();
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
  for (const scalar w : wild_result.plan.weights()) CHECK((!is_nan(w) && std::abs(w) < scalar(1e6)));
  if (!wild_result.tape.seen.has_noise) CHECK(wild_result.tape.choices.expert[3 * k] == E / 2);

  // No tokens, one token, nothing but padding.
  const auto none = route(router, matrix<scalar>(0, E), context);
  CHECK(none.plan.size() == 0);
  CHECK(none.plan.offsets().size() == std::size_t(E) + 1);
  const auto one = route(router, matrix<scalar>(x.topRows(1)), context);
  CHECK(one.plan.size() + index_t(one.plan.dropped().size()) >= 1);
  std::fill(mask.begin(), mask.end(), std::uint8_t(0));
  const auto nobody = route(router, broken, masked_context);
  CHECK(nobody.plan.size() == 0);
  CHECK(nobody.plan.dropped().empty());
}

/// Gradients of sum(y * dy) through a layer of small experts against central differences.
template <typename Router>
gradient_report check_router_gradients(Router router, index_t tokens, std::uint64_t seed,
                                       routing_context<double> context, index_t* dropped = nullptr) {
  const index_t experts = router.experts();
  const index_t width = router.inputs();
  moe_layer layer{std::move(router), expert_bank<swiglu<double>>(experts, width, 3)};
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

inline routing_context<double> training(std::uint64_t seed = 1) {
  routing_context<double> context;
  context.training = true;
  context.random = random_source(seed);
  return context;
}

}  // namespace sluice::test
