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
#include "any_router.hpp"

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
  check_promises_of<scalar>(any_router<scalar, sparse_plan<scalar>>(router), choices, Router::causal,
                            [&](const routing_context<scalar>& context, const matrix<scalar>& logits, scalar held) {
                              return chosen_over(router, context, logits, held);
                            });
}

/// Gradients of sum(y * dy) through a layer of small experts against central differences.
template <typename Router>
gradient_report check_router_gradients(const Router& router, index_t tokens, std::uint64_t seed,
                                       const routing_context<double>& context, index_t* dropped = nullptr) {
  return check_router_gradients_of(any_router<double, sparse_plan<double>>(router), tokens, seed, context, dropped);
}

inline routing_context<double> training(std::uint64_t seed = 1) {
  routing_context<double> context;
  context.training = true;
  context.random = random_source(seed);
  return context;
}

}  // namespace sluice::test
