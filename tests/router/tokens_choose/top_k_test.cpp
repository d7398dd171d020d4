#include <sluice/router/tokens_choose/top_k.hpp>

#include <sluice/capacity/position.hpp>

#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

using namespace sluice;
using test::copy_gate;

namespace {

const test::table_router top_k_in_table("top_k_router", [] {
  return test::made(top_k_router<double>{6, 4, {.top_k = 2}}, {.k = 2});
});

template <typename Scalar, typename Capacity = dropless>
using given_top_k = top_k_router<Scalar, dynamic, dynamic, copy_gate<Scalar>, no_noise<Scalar>, Capacity>;

/// The definition, token by token.
template <typename Scalar>
matrix<double> naive_weights(const matrix<Scalar>& logits, index_t k, weighting weights) {
  const index_t E = logits.cols();
  matrix<double> dense = matrix<double>::Zero(logits.rows(), E);
  for (index_t t = 0; t < logits.rows(); ++t) {
    const auto order = test::sorted_positions(&logits(t, 0), E);
    const auto p = test::naive_softmax(&logits(t, 0), E);
    double sum = 0;
    for (index_t j = 0; j < k; ++j) sum += p[std::size_t(order[std::size_t(j)])];
    for (index_t j = 0; j < k; ++j) {
      const index_t e = order[std::size_t(j)];
      dense(t, e) = weights == weighting::pre ? p[std::size_t(e)] : p[std::size_t(e)] / sum;
    }
  }
  return dense;
}

}  // namespace

TEMPLATE_TEST_CASE("top_k: weights equal the definition for every weighting and size", "[router][top_k]", float,
                   double) {
  using S = TestType;
  struct shape {
    index_t T, E, k;
  };
  const auto s = GENERATE(shape{0, 4, 2}, shape{1, 1, 1}, shape{1, 5, 5}, shape{33, 8, 3}, shape{40, 6, 6},
                          shape{9, 257, 8}, shape{5, 512, 1}, shape{5, 512, 2}, shape{3, 512, 512});
  const auto weights = GENERATE(weighting::pre, weighting::post, weighting::renorm);
  CAPTURE(s.T, s.E, s.k, int(weights));
  const given_top_k<S> router(s.E, s.E, {.top_k = s.k, .weights = weights, .constant_weight = true});
  const matrix<S> logits = test::random_matrix<S>(s.T, s.E, 2);
  const auto result = test::route(router, logits);
  const matrix<double> expected = naive_weights(logits, s.k, weights);
  REQUIRE(result.plan.tokens() == s.T);
  REQUIRE(result.plan.size() == s.T * s.k);
  // Each weight is a quotient of two sums of at most E exponentials, each good to a few eps.
  CHECK(test::largest_difference(matrix<double>(result.plan.dense_weights().template cast<double>()), expected) <=
        double(test::bound<S>(s.E)));
  for (index_t t = 0; t < s.T; ++t) {
    const auto order = test::sorted_positions(&logits(t, 0), s.E);
    for (index_t j = 0; j < s.k; ++j) CHECK(result.tape.choices.expert[t * s.k + j] == order[std::size_t(j)]);
  }
}

TEST_CASE("top_k: the worked example", "[router][top_k]") {
  const matrix<double> logits = test::fixture_f<double>();
  const auto weights_of = [&](weighting weights) {
    return test::route(given_top_k<double>(4, 4, {.top_k = 2, .weights = weights}), logits).plan.dense_weights();
  };
  const matrix<double> pre = weights_of(weighting::pre);
  CHECK(std::abs(pre(0, 0) - 0.643914) < test::printed);
  CHECK(std::abs(pre(0, 1) - 0.236883) < test::printed);
  CHECK(std::abs(pre(1, 0) - 0.455054) < test::printed);
  CHECK(std::abs(pre(1, 1) - 0.276004) < test::printed);
  CHECK(pre(0, 2) == 0);
  for (const weighting weights : {weighting::post, weighting::renorm}) {
    const matrix<double> w = weights_of(weights);
    CHECK(std::abs(w(0, 0) - 0.731059) < test::printed);
    CHECK(std::abs(w(0, 1) - 0.268941) < test::printed);
    CHECK(std::abs(w(1, 0) - 0.622459) < test::printed);
    CHECK(std::abs(w(1, 1) - 0.377541) < test::printed);
  }
}

TEST_CASE("top_k: weights over a norm of any order", "[router][top_k]") {
  matrix<double> logits(1, 3);
  logits << std::log(0.6), std::log(0.3), std::log(0.1);
  const auto weights_of = [&](double order, double scaling = 1) {
    return test::route(given_top_k<double>(3, 3, {.top_k = 2, .scaling = scaling, .norm_order = order}), logits)
        .plan.dense_weights();
  };
  const matrix<double> by_length = weights_of(2, 3);  // 0.6 and 0.3 over the square root of 0.45, times 3
  CHECK(by_length(0, 0) == Approx(1.8 / std::sqrt(0.45)).epsilon(1e-14));
  CHECK(by_length(0, 1) == Approx(0.9 / std::sqrt(0.45)).epsilon(1e-14));
  const matrix<double> by_half = weights_of(0.5);  // (sqrt 0.6 + sqrt 0.3)^2
  CHECK(by_half(0, 0) == Approx(0.6 / (0.9 + 2 * std::sqrt(0.18))).epsilon(1e-14));
  CHECK(weights_of(64)(0, 0) == Approx(1).epsilon(1e-14));  // towards the largest
  CHECK(test::same_bits(weights_of(1), test::route(given_top_k<double>(3, 3, {.top_k = 2}), logits).plan.dense_weights()));
  // Of probabilities whose squares underflow.
  matrix<double> far(1, 3);
  far << 0, -500, -500;
  const given_top_k<double> all(3, 3, {.top_k = 3, .norm_order = 2});
  CHECK(test::route(all, far).plan.dense_weights()(0, 1) == Approx(std::exp(-500)).epsilon(1e-12));
  for (const double order : {0.0, -1.0, std::numeric_limits<double>::infinity()})
    CHECK_THROWS_WITH(top_k_router<double>(4, 8, {.norm_order = order}), test::contains("order"));
  CHECK_THROWS_WITH(top_k_router<double>(4, 8, {.top_k = 1, .norm_order = 2}), test::contains("k = 1"));
}

TEST_CASE("top_k: equal logits go to the lowest experts", "[router][top_k][ties]") {
  matrix<float> logits = matrix<float>::Zero(2, 6);
  logits(1, 2) = logits(1, 4) = logits(1, 5) = 1;
  logits(0, 3) = -0.0f;  // both zeros are equal
  const auto result = test::route(given_top_k<float>(6, 6, {.top_k = 4}), logits);
  const std::vector<index_t> ids(result.tape.choices.expert.begin(), result.tape.choices.expert.end());
  CHECK(ids == std::vector<index_t>{0, 1, 2, 3, 2, 4, 5, 0});
  for (index_t j = 0; j < 4; ++j) CHECK(result.tape.choices.weight[j] == 0.25f);
}

TEST_CASE("top_k: infinite logits are values", "[router][top_k]") {
  const float infinity = std::numeric_limits<float>::infinity();
  matrix<float> logits(3, 4);
  logits << 0, infinity, 1, infinity, 5, -infinity, -infinity, 2, -infinity, -infinity, -infinity, -infinity;
  for (const weighting weights : {weighting::pre, weighting::post, weighting::renorm}) {
    const matrix<float> w =
        test::route(given_top_k<float>(4, 4, {.top_k = 3, .weights = weights}), logits).plan.dense_weights();
    CHECK(w(0, 1) == 0.5f);
    CHECK(w(0, 3) == 0.5f);
    CHECK(w(0, 2) == 0.0f);
    CHECK(std::abs(w.row(1).sum() - 1) <= test::bound<float>(4));
    CHECK(w(1, 1) == 0.0f);
    CHECK((w.row(2).array() > 0).count() == 3);
  }
}

TEST_CASE("top_k: with k = E the plain weights are the softmax itself", "[router][top_k]") {
  const matrix<double> logits = test::random_matrix<double>(11, 7, 4);
  const auto result = test::route(given_top_k<double>(7, 7, {.top_k = 7, .weights = weighting::pre}), logits);
  CHECK(test::same_bits(result.plan.dense_weights(), matrix<double>(result.tape.scores.map())));
}

TEST_CASE("top_k: adding a constant to a row of logits changes nothing", "[router][top_k]") {
  const matrix<double> logits = test::random_matrix<double>(20, 6, 5);
  const matrix<double> shifted = logits.array() + 8.0;
  for (const weighting weights : {weighting::pre, weighting::post, weighting::renorm}) {
    const given_top_k<double> router(6, 6, {.top_k = 2, .weights = weights});
    // The shift rounds each logit by at most eps * 16, and so each exponential.
    CHECK(test::largest_difference(test::route(router, logits).plan.dense_weights(),
                                   test::route(router, shifted).plan.dense_weights()) <= test::bound<double>(6, 16));
  }
}

TEST_CASE("top_k: k can be given by the call", "[router][top_k]") {
  const given_top_k<double> router(9, 9, {.top_k = 2, .weights = weighting::pre});
  const matrix<double> logits = test::random_matrix<double>(13, 9, 6);
  for (index_t k = 1; k <= 9; ++k) {
    CAPTURE(k);
    routing_context<double> context;
    context.top_k = k;
    const auto result = test::route(router, logits, context);
    CHECK(test::largest_difference(result.plan.dense_weights(), naive_weights(logits, k, weighting::pre)) <=
          test::bound<double>(9));
    CHECK(result.tape.seen.top_k == k);
  }
  for (const index_t k : {index_t(-1), index_t(10), index_t(1) << 40}) {
    routing_context<double> context;
    context.top_k = k;
    CHECK_THROWS_WITH(test::route(router, logits, context),
                      test::contains("k = " + std::to_string(k)) && test::contains("E = 9"));
  }
}

TEST_CASE("top_k: options that make no sense are refused with their numbers", "[router][top_k]") {
  using router = top_k_router<float>;
  const auto message = [](const char* part) { return test::contains(part); };
  CHECK_THROWS_WITH(router(4, 8, {.top_k = 9}), message("k = 9") && message("E = 8"));
  CHECK_THROWS_WITH(router(4, 8, {.top_k = 0}), message("k = 0"));
  CHECK_THROWS_WITH(router(4, 0, {.top_k = 1, .weights = weighting::pre}), message("E = 0"));
  CHECK_THROWS_WITH(router(4, 8, {.scaling = 0}), message("scaled by 0"));
  CHECK_THROWS_WITH(router(4, 8, {.scaling = std::numeric_limits<float>::infinity()}), message("inf"));
  CHECK_THROWS_AS(router(4, 8, {.scaling = quiet_nan<float>()}), std::invalid_argument);
  CHECK_THROWS_WITH(router(4, 8, {.smallest_sum = -1}), message("-1"));
  CHECK_THROWS_WITH(router(4, 8, {.added_to_sum = -2}), message("-2"));
  using fixed = top_k_router<float, 8, 2>;
  CHECK_THROWS_WITH(fixed(4, 8, {.top_k = 3}), message("k = 2") && message("3"));
  CHECK_THROWS_WITH(fixed(4, 7), message("7") && message("8"));
}

TEST_CASE("top_k: one choice with constant weight is refused where it would train", "[router][top_k]") {
  for (const weighting weights : {weighting::post, weighting::renorm}) {
    CHECK_THROWS_WITH(top_k_router<float>(4, 8, {.top_k = 1, .weights = weights}), test::contains("k = 1"));
    const top_k_router<float> router(4, 8, {.top_k = 2, .weights = weights});
    const matrix<float> x = test::random_matrix<float>(3, 4, 1);
    routing_context<float> context;
    context.top_k = 1;
    CHECK(test::route(router, x, context).plan.weights()[0] == 1.0f);
    context.training = true;
    CHECK_THROWS_WITH(test::route(router, x, context), test::contains("k = 1"));
    const top_k_router<float> allowed(4, 8, {.top_k = 1, .weights = weights, .constant_weight = true});
    CHECK(test::route(allowed, x, context).plan.size() == 3);
  }
}

TEST_CASE("top_k: fixed sizes equal dynamic sizes", "[router][top_k]") {
  top_k_router<float> flexible(6, 8, {.top_k = 2});
  initialize(flexible, 5);
  top_k_router<float, 8, 2> fixed(6);
  initialize(fixed, 5);
  const matrix<float> x = test::random_matrix<float>(19, 6, 6);
  CHECK(test::plan_bits(test::route(flexible, x).plan) == test::plan_bits(test::route(fixed, x).plan));
  CHECK(sizeof(fixed) < sizeof(flexible));
}

TEST_CASE("top_k: permuting experts permutes the plan, permuting tokens its tokens", "[router][top_k]") {
  const matrix<double> logits = test::random_matrix<double>(8, 5, 7);
  const given_top_k<double> router(5, 5, {.top_k = 2});
  const matrix<double> plain = test::route(router, logits).plan.dense_weights();
  const std::array<index_t, 5> experts{3, 0, 4, 1, 2};
  matrix<double> by_expert(8, 5);
  for (index_t e = 0; e < 5; ++e) by_expert.col(e) = logits.col(experts[std::size_t(e)]);
  const matrix<double> permuted = test::route(router, by_expert).plan.dense_weights();
  for (index_t e = 0; e < 5; ++e)
    CHECK(test::largest_difference(matrix<double>(permuted.col(e)),
                                   matrix<double>(plain.col(experts[std::size_t(e)]))) <= test::bound<double>(5));
  const matrix<double> reversed = logits.colwise().reverse();
  CHECK(test::same_bits(test::route(router, reversed).plan.dense_weights(), matrix<double>(plain.colwise().reverse())));
}

TEST_CASE("top_k: promises of every token-choice router", "[router][top_k]") {
  test::check_promises(given_top_k<float>(5, 5, {.top_k = 2}), 2);
  test::check_promises(given_top_k<double>(5, 5, {.top_k = 1, .weights = weighting::pre}), 1);
  test::check_promises(given_top_k<float>(6, 6, {.top_k = 6, .weights = weighting::post}), 6);
  using limited = given_top_k<float, position_capacity>;
  test::check_promises(limited(copy_gate<float>(5, 5), {.top_k = 2}, {},
                               position_capacity(capacity_limit::vmoe(0.6, capacity_rounding::up, 0))),
                       2);
}

TEST_CASE("top_k: gradients equal central differences", "[router][top_k][gradient]") {
  struct setting {
    const char* name;
    top_k_router<double>::options options;
  };
  const auto s =
      GENERATE(setting{"pre", {.top_k = 2, .weights = weighting::pre, .scaling = 1.5}},
               setting{"pre, k = 1", {.top_k = 1, .weights = weighting::pre}},
               setting{"pre, k = E", {.top_k = 5, .weights = weighting::pre}},
               setting{"post", {.top_k = 3, .weights = weighting::post, .scaling = -2}},
               setting{"renorm", {.top_k = 2, .scaling = 0.5}},
               setting{"renorm below its guard", {.top_k = 2, .smallest_sum = 10}},
               setting{"renorm with an added guard", {.top_k = 2, .added_to_sum = 0.5, .scaling = 3}},
               setting{"renorm, length 1", {.top_k = 3, .scaling = 2, .norm_order = 2}},
               setting{"renorm, order 1/2, with a guard", {.top_k = 3, .added_to_sum = 0.25, .norm_order = 0.5}},
               setting{"groups", {.top_k = 1, .weights = weighting::pre, .groups = {.groups = 5, .kept = 2}}});
  CAPTURE(s.name);
  const auto report = test::check_router_gradients(top_k_router<double>(4, 5, s.options), 8, 31, test::training());
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("top_k: gradients with dropped choices, weighed before or after the drop", "[router][top_k][gradient]") {
  using router = top_k_router<double, dynamic, dynamic, linear_gate<double>, no_noise<double>, position_capacity>;
  const bool after = GENERATE(false, true);
  const auto weights = GENERATE(weighting::pre, weighting::post, weighting::renorm);
  CAPTURE(after, int(weights));
  index_t dropped = 0;
  const auto report = test::check_router_gradients(
      router(linear_gate<double>(4, 5), {.top_k = 3, .weights = weights}, {},
             position_capacity(capacity_limit::gshard(0.5)), {.renormalize_after_drop = after}),
      12, 41, test::training(), &dropped);
  INFO(report.describe());
  CHECK(dropped > 10);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("top_k: a detached sum weighs as renorm does and learns as pre does", "[router][top_k][gradient]") {
  matrix<double> logits(1, 3);
  logits << 1, 2, 0.6;
  given_top_k<double> router(3, 3, {.top_k = 2, .weights = weighting::renorm_detached});
  const given_top_k<double> renorm(3, 3, {.top_k = 2, .weights = weighting::renorm});
  auto result = test::route(router, logits, test::training());
  CHECK(test::same_bits(result.plan.dense_weights(), test::route(renorm, logits).plan.dense_weights()));
  // dw = <dy, f> for outputs (1, 0), (0, 2) and dy = (1, -1).
  sparse_plan_gradient<double> gradient;
  gradient.weight.assign(2, 0);
  for (index_t i = 0; i < 2; ++i) gradient.weight[i] = result.plan.expert(i) == 0 ? 1 : -2;
  result.tape.dseen.zero_like(result.tape.seen);
  matrix<double> dx = matrix<double>::Zero(1, 3);
  router.backward(logits, test::training(), result.plan, gradient, result.tape, dx);
  const double expected[3] = {0.540822, -0.723069, 0.182247};
  for (index_t e = 0; e < 3; ++e) CHECK(dx(0, e) == Approx(expected[e]).margin(1e-6));
  // One choice has weight 1 and still a gradient, so it is not refused.
  CHECK(test::route(given_top_k<double>(3, 3, {.top_k = 1, .weights = weighting::renorm_detached}), logits,
                    test::training()).plan.weight(0) == 1);
}

TEST_CASE("top_k: chosen under noise, weighed without it", "[router][top_k]") {
  using noisy = top_k_router<double, dynamic, dynamic, copy_gate<double>, uniform_noise<double>>;
  const matrix<double> logits = test::fixture_f<double>();
  // Draws that turn the choice of token 0 from expert 0 to 1, of token 1 from 0 to 3, and leave the others.
  std::vector<double> draws(16, 0.01);
  draws[1] = 0.99, draws[7] = 0.999;
  routing_context<double> context = test::training();
  context.random.replay(noise_site, draws);
  const noisy router(copy_gate<double>(4, 4), {.top_k = 1, .weights = weighting::pre, .weigh_clean = true},
                     uniform_noise<double>(2));
  auto r = test::route(router, logits, context);
  // The catalogue's softmax of these logits, of the chosen experts: without the noise.
  const std::vector<index_t> experts{1, 3, 1, 0};
  const std::vector<double> weights{0.236883, 0.101536, 0.789137, 0.789137};
  for (index_t t = 0; t < 4; ++t) {
    REQUIRE(r.plan.of_token(t).size() == 1);
    CHECK(r.plan.expert(r.plan.of_token(t)[0]) == experts[as_size(t)]);
    CHECK(std::abs(r.plan.weight(r.plan.of_token(t)[0]) - weights[as_size(t)]) <= test::printed);
  }
  for (const weighting form : {weighting::pre, weighting::post, weighting::renorm}) {
    top_k_router<double, dynamic, dynamic, linear_gate<double>, uniform_noise<double>> learned(
        linear_gate<double>(6, 4), {.top_k = 2, .weights = form, .weigh_clean = true});
    initialize(learned, 3);
    const auto report = test::check_router_gradients(learned, 8, 82, test::training());
    INFO(report.describe());
    CHECK(report.largest_error < 1e-6);
  }
  // A noise that learns its scale has no part in such weights.
  top_k_router<double, dynamic, dynamic, linear_gate<double>, learned_noise<double>> learned(
      linear_gate<double>(6, 4), {.top_k = 2, .weights = weighting::pre, .weigh_clean = true},
      learned_noise<double>(6, 4));
  initialize(learned, 3);
  const auto report = test::check_router_gradients(learned, 8, 83, test::training());
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
  CHECK_THROWS_WITH(softmax_rule<double>({.groups = {.groups = 2, .kept = 1}, .weigh_clean = true}),
                    test::contains("1 of 2 groups"));
}
